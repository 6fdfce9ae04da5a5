package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/engine/event"
)

// publishBatch is how many messages go into the outbox in one transaction.
const publishBatch = 500

// maxLine is the longest line that publish reads: more than any message may
// have, so that too large ones are told from broken files.
const maxLine = 16 << 20

// publication is what publish did; it is also its JSON output.
type publication struct {
	Topic     string      `json:"topic"`
	Published int         `json:"published"`
	IDs       []string    `json:"ids,omitempty"`
	Rejected  []rejection `json:"rejected"`
}

type rejection struct {
	// Line is 0 for a message of the command line.
	Line  int    `json:"line,omitempty"`
	Error string `json:"error"`
}

type publisher struct {
	service   *app.Service
	unchecked bool
	pending   []event.Message
	result    publication
	keepIDs   bool
}

func newPublish(opts *options) *cobra.Command {
	var (
		file      string
		unchecked bool
	)

	cmd := &cobra.Command{
		Use:   "publish TOPIC [JSON]",
		Short: "Publish a message, or one for every line of a file",
		Long: `Publish a message to a topic, or with --file one for every line (NDJSON) of a
file; "-" is standard input. Messages go through the outbox, so nothing is lost
when the service or the broker is down. What the service would reject is not
published: it is listed with its line and the reason.`,
		Example: `  millrace publish orders.created '{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}'
  millrace publish orders.created --file orders.ndjson`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || (len(args) == 2) == (file != "") || len(args) > 2 {
				return usageError{errors.New("expected a topic and either a JSON text or --file")}
			}

			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			service, release, err := opts.service()
			if err != nil {
				return err
			}
			defer release()

			p := &publisher{service: service, unchecked: unchecked, result: publication{Topic: args[0], Rejected: []rejection{}}}

			if file == "" {
				p.keepIDs = true
				err = p.single(cmd.Context(), []byte(args[1]))
			} else {
				err = p.lines(cmd.Context(), file)
			}

			if err != nil {
				return err
			}

			return p.report(opts, cmd.OutOrStdout())
		},
	}

	cmd.Flags().StringVarP(&file, "file", "f", "", `file with one message per line, "-" for standard input`)
	cmd.Flags().BoolVar(&unchecked, "unchecked", false, "publish also what would be rejected, to see it in the poison queue")

	return cmd
}

func (p *publisher) single(ctx context.Context, payload []byte) error {
	if err := p.add(ctx, 0, payload); err != nil {
		return err
	}

	return p.flush(ctx)
}

func (p *publisher) lines(ctx context.Context, name string) error {
	in, err := open(name)
	if err != nil {
		return err
	}
	defer in.Close()

	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 0, 64<<10), maxLine)

	for line := 1; scanner.Scan(); line++ {
		if payload := bytes.TrimSpace(scanner.Bytes()); len(payload) > 0 {
			if err := p.add(ctx, line, bytes.Clone(payload)); err != nil {
				return err
			}
		}
	}

	if err := scanner.Err(); err != nil {
		return fmt.Errorf("reading %s: %w (%d messages are published)", name, err, p.result.Published)
	}

	return p.flush(ctx)
}

// add takes one message, or notes why it is rejected.
func (p *publisher) add(ctx context.Context, line int, payload []byte) error {
	key, err := p.service.Check(p.result.Topic, payload)

	switch {
	case event.KindOf(err) == event.Unknown:
		return err
	case err != nil && !p.unchecked:
		p.result.Rejected = append(p.result.Rejected, rejection{Line: line, Error: err.Error()})

		return nil
	}

	p.pending = append(p.pending, event.Message{ID: event.NewID(), Topic: p.result.Topic, Key: key, Payload: payload})
	if len(p.pending) < publishBatch {
		return nil
	}

	return p.flush(ctx)
}

func (p *publisher) flush(ctx context.Context) error {
	if err := p.service.Publish(ctx, p.pending); err != nil {
		return fmt.Errorf("%w (%d messages are published)", err, p.result.Published)
	}

	p.result.Published += len(p.pending)

	if p.keepIDs {
		for _, m := range p.pending {
			p.result.IDs = append(p.result.IDs, m.ID.String())
		}
	}

	p.pending = p.pending[:0]

	return nil
}

func (p *publisher) report(opts *options, out io.Writer) error {
	err := opts.print(out, p.result, func(w io.Writer) {
		fmt.Fprintf(w, "published %d to %s", p.result.Published, p.result.Topic)

		for _, id := range p.result.IDs {
			fmt.Fprintf(w, ", id %s", id)
		}

		fmt.Fprintln(w)

		for _, r := range p.result.Rejected {
			if r.Line == 0 {
				fmt.Fprintf(w, "rejected: %s\n", r.Error)
			} else {
				fmt.Fprintf(w, "rejected line %d: %s\n", r.Line, r.Error)
			}
		}
	})

	if err == nil && len(p.result.Rejected) > 0 {
		return errRejected
	}

	return err
}

// open opens a file, with a progress bar when a person is watching.
func open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return watched(os.Stdin, -1), nil
	}

	file, err := os.Open(name)
	if err != nil {
		return nil, usageError{err}
	}

	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}

	return watched(file, info.Size()), nil
}

func watched(file *os.File, size int64) io.ReadCloser {
	if !isatty.IsTerminal(os.Stderr.Fd()) || (file == os.Stdin && isatty.IsTerminal(file.Fd())) {
		return file
	}

	bar := progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetDescription("publishing"),
		progressbar.OptionShowBytes(true),
		progressbar.OptionClearOnFinish(),
	)
	reader := progressbar.NewReader(file, bar)

	return &reader
}
