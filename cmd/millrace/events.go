package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// Reading of all events.
const (
	exportBatch = 1000
	tailPause   = 250 * time.Millisecond
)

func newEvents(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "events", Short: "Read the event store", Args: exactly(0)}
	show := &cobra.Command{
		Use: "show STREAM", Short: "Show the events of a stream, such as order-order_123", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			events, err := eventstore.Read(cmd.Context(), service.Pool, args[0])
			if err != nil {
				return err
			}

			if len(events) == 0 {
				return notFoundError{fmt.Errorf("there is no stream %s", args[0])}
			}

			return opts.print(cmd.OutOrStdout(), events, func(w io.Writer) {
				for _, e := range events {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", e.Version, e.Type, stamp(e.RecordedAt), oneLine(string(e.Data), 200))
				}
			})
		}),
	}

	var after int64

	tail := &cobra.Command{
		Use: "tail", Short: "Print events as they happen, one JSON object a line, until Ctrl-C", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			position := after

			if !cmd.Flags().Changed("after") {
				horizon, err := eventstore.Horizon(cmd.Context(), service.Pool)
				if err != nil {
					return err
				}

				position = horizon
			}

			err := export(cmd.Context(), service, cmd.OutOrStdout(), position, true)
			if errors.Is(err, context.Canceled) {
				return nil // Ctrl-C is how it ends
			}

			return err
		}),
	}
	exported := &cobra.Command{
		Use: "export", Short: "Print all events, one JSON object a line", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			return export(cmd.Context(), service, cmd.OutOrStdout(), after, false)
		}),
	}

	for _, c := range []*cobra.Command{tail, exported} {
		c.Flags().Int64Var(&after, "after", 0, "begin after this position")
	}

	cmd.AddCommand(show, tail, exported)

	return cmd
}

// export prints the events after a position, and with follow those to come.
func export(ctx context.Context, service *app.Service, out io.Writer, position int64, follow bool) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)

	for {
		horizon, err := eventstore.Horizon(ctx, service.Pool)
		if err != nil {
			return err
		}

		for position < horizon {
			events, next, err := eventstore.ReadAll(ctx, service.Pool, position, horizon, exportBatch)
			if err != nil {
				return err
			}

			for _, e := range events {
				if err := encoder.Encode(e); err != nil {
					return fmt.Errorf("printing events: %w", err)
				}
			}

			position = next
		}

		if !follow {
			return nil
		}

		select {
		case <-time.After(tailPause):
		case <-ctx.Done():
			return nil
		}
	}
}

func newProjections(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "projections", Short: "Work on the tables that follow the event store", Args: exactly(0)}
	status := &cobra.Command{
		Use: "status", Aliases: []string{"list"}, Short: "Show how far each projection is", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			list, err := service.Projector.Status(cmd.Context())
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "PROJECTION\tPOSITION\tBEHIND\tMOVED\tREBUILT")

				for _, p := range list {
					rebuilt := "never"
					if p.RebuiltAt != nil {
						rebuilt = stamp(*p.RebuiltAt)
					}

					fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", p.Name, p.Position, p.Behind, stamp(p.UpdatedAt), rebuilt)
				}
			})
		}),
	}
	rebuild := &cobra.Command{
		Use: "rebuild NAME", Short: "Make the tables of a projection anew, while the service runs",
		Long: `Make the tables of a projection anew from the first event on. The old ones are
read and kept up to date until the new ones take their place, all at once. It
can be broken off at any time: nothing has changed then.`,
		Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			started := time.Now()

			var positions int64

			progress, done := showProgress("rebuilding " + args[0])

			err := service.Projector.Rebuild(cmd.Context(), args[0], func(at, total int64) {
				positions = at
				progress(at, total)
			})

			done()

			if err != nil {
				return err
			}

			took := time.Since(started)
			result := map[string]any{"projection": args[0], "positions": positions, "seconds": took.Seconds()}

			return opts.print(cmd.OutOrStdout(), result, func(w io.Writer) {
				fmt.Fprintf(w, "rebuilt %s from %d positions in %s\n", args[0], positions, took.Round(time.Millisecond))
			})
		}),
	}
	cmd.AddCommand(status, rebuild)

	return cmd
}

// showProgress shows a bar to people and a line now and then to others.
func showProgress(what string) (progress func(at, total int64), done func()) {
	if isatty.IsTerminal(os.Stderr.Fd()) {
		bar := progressbar.NewOptions64(1, progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionSetDescription(what), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish())

		return func(at, total int64) {
			bar.ChangeMax64(max(total, 1))
			_ = bar.Set64(at)
		}, func() { _ = bar.Finish() }
	}

	const every = 5 * time.Second

	next := time.Now().Add(every)

	return func(at, total int64) {
		if time.Now().After(next) {
			next = time.Now().Add(every)

			fmt.Fprintf(os.Stderr, "%s: %d of %d\n", what, at, total)
		}
	}, func() {}
}

func newTrace(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "trace ID", Short: "Show the conversation of a message as a tree: what caused it and what followed",
		Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			id, err := uuid.Parse(args[0])
			if err != nil {
				return usageError{fmt.Errorf("%q is no id of a message, expected a UUID", args[0])}
			}

			roots, err := trace.Find(cmd.Context(), service.Pool, id)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), roots, func(w io.Writer) {
				for _, root := range roots {
					writeTree(w, service, root, "", "", id)
				}
			})
		}),
	}
}

func writeTree(w io.Writer, service *app.Service, m *trace.Message, first, rest string, asked uuid.UUID) {
	topic := m.Topic
	if topic == "" {
		topic = service.TopicOf(m.Consumer)
	}

	mark := ""
	if m.ID == asked {
		mark = " <- this one"
	}

	delay := ""
	if created, ok := m.Created(); ok && m.State == trace.Applied {
		delay = fmt.Sprintf(" +%s", max(0, m.At.Sub(created)).Round(time.Millisecond))
	}

	fmt.Fprintf(w, "%s%s  %s %s%s  %s%s\n", first, topic, m.State, stamp(m.At), delay, m.ID, mark)

	if m.Detail != "" {
		fmt.Fprintf(w, "%s   %s\n", rest, oneLine(m.Detail, 160))
	}

	for i, next := range m.Caused {
		if i == len(m.Caused)-1 {
			writeTree(w, service, next, rest+"└─ ", rest+"   ", asked)
		} else {
			writeTree(w, service, next, rest+"├─ ", rest+"│  ", asked)
		}
	}
}
