package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newParked(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "parked", Short: "Look at messages that wait for another attempt; retry or skip them",
		Long: `A message whose handler keeps failing is parked: it is tried again later, and
later messages of the same key wait behind it, in order. Other keys go on.`,
		Args: exactly(0),
	}

	var (
		filter failed.KeyFilter
		limit  int
	)

	list := &cobra.Command{
		Use: "list", Short: "List the keys that wait, those that are due next first", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			waiting, err := service.Failed.WaitingKeys(cmd.Context(), filter, limit)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), waiting, func(w io.Writer) {
				fmt.Fprintln(w, "SEQ\tCONSUMER\tKEY\tBEHIND\tATTEMPTS\tDUE\tERROR")

				for _, m := range waiting {
					fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%s\t%s\n", m.ID, m.Consumer, oneLine(m.Key, 60), m.Blocked, m.Attempts, stamp(m.DueAt), oneLine(m.Error, 100))
				}
			})
		}),
	}
	list.Flags().StringVar(&filter.Consumer, "consumer", "", "only keys of this consumer")
	list.Flags().StringVar(&filter.Key, "key", "", "only this key")
	list.Flags().IntVar(&limit, "limit", 20, "how many")

	show := &cobra.Command{
		Use: "show SEQ", Short: "Show a parked message and what waits with it", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			seq, err := sequence(args[0])
			if err != nil {
				return err
			}

			queue, err := service.Failed.Queue(cmd.Context(), seq)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), queue, func(w io.Writer) { writeQueue(w, queue) })
		}),
	}
	cmd.AddCommand(list, show, newParkedRetry(opts), newParkedSkip(opts))

	return cmd
}

func newParkedRetry(opts *options) *cobra.Command {
	var (
		filter failed.KeyFilter
		by     activity.Actor
		all    bool
	)

	retry := &cobra.Command{
		Use: "retry [SEQ]", Short: "Try parked messages now instead of later", Args: cobra.MaximumNArgs(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) (err error) {
			if len(args) == 1 {
				if filter.ID, err = sequence(args[0]); err != nil {
					return err
				}
			}

			if filter == (failed.KeyFilter{}) && !all {
				return usageError{errors.New("nothing is selected: give a SEQ, --consumer, --key or --all")}
			}

			n, err := service.Failed.RetryNow(cmd.Context(), filter, by)
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), map[string]int64{"due": n}, func(w io.Writer) {
				fmt.Fprintf(w, "%d keys are due now; the running service tries them within a second\n", n)
			})
		}),
	}
	retry.Flags().StringVar(&filter.Consumer, "consumer", "", "keys of this consumer")
	retry.Flags().StringVar(&filter.Key, "key", "", "this key")
	retry.Flags().BoolVar(&all, "all", false, "all keys")
	actorFlags(retry, &by)

	return retry
}

func newParkedSkip(opts *options) *cobra.Command {
	var by activity.Actor

	skip := &cobra.Command{
		Use: "skip SEQ", Short: "Give up the first message of a key, so that the others go on",
		Long: `The message goes to the poison queue, from where it can be mended and requeued.
The next message of its key is tried at once.`,
		Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			seq, err := sequence(args[0])
			if err != nil {
				return err
			}

			if err := service.Failed.Skip(cmd.Context(), seq, by); err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), map[string]int64{"skipped": seq}, func(w io.Writer) {
				fmt.Fprintf(w, "skipped %d: it is stopped now (millrace poison list)\n", seq)
			})
		}),
	}
	actorFlags(skip, &by)

	return skip
}

func sequence(arg string) (int64, error) {
	seq, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || seq < 1 {
		return 0, usageError{fmt.Errorf("%q is no number of a parked message, expected one that `millrace parked list` shows", arg)}
	}

	return seq, nil
}

func writeQueue(w io.Writer, queue []failed.Entry) {
	for i, m := range queue {
		if i > 0 {
			fmt.Fprintln(w)
		}

		fmt.Fprintf(w, "seq\t%d (%d of %d of its key)\n", m.ID, i+1, len(queue))
		fmt.Fprintf(w, "consumer\t%s\n", m.Consumer)
		fmt.Fprintf(w, "topic\t%s\n", m.Topic)
		fmt.Fprintf(w, "key\t%s\n", oneLine(m.Key, 200))
		fmt.Fprintf(w, "message\t%s\n", m.MessageID)
		fmt.Fprintf(w, "origin\t%s\n", m.Origin)
		fmt.Fprintf(w, "parked\t%s\n", stamp(m.FirstAt))

		if m.Error != "" {
			fmt.Fprintf(w, "attempts\t%d, last %s\n", m.Attempts, stamp(m.LastAt))
			fmt.Fprintf(w, "error\t%s\n", oneLine(m.Error, 2000))
		}

		fmt.Fprintf(w, "payload\t%s\n", oneLine(string(m.Payload), 2000))
	}
}

// with, exactly and print serve the commands that are about to be replaced.
func with(opts *options, fn func(cmd *cobra.Command, args []string, service *app.Service) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		service, release, err := opts.service()
		if err != nil {
			return err
		}
		defer release()

		return fn(cmd, args, service)
	}
}

func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w: usage: %s", err, cmd.UseLine())}
		}

		return nil
	}
}

func (o *options) print(w io.Writer, v any, text func(w io.Writer)) error {
	cmd := &cobra.Command{}
	cmd.SetOut(w)

	return (&call{opts: o, cmd: cmd}).print(v, text)
}
