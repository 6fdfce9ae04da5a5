package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedWaiting(opts *options) *cobra.Command {
	var filter failed.KeyFilter

	return operation(opts, &cobra.Command{
		Use: "waiting [ID]", Short: "List waiting keys, next due first, or the messages with one key in order",
		Example: `  millrace failed waiting --consumer fulfilment.charge
  millrace failed waiting 17`,
	}, func(c *call) error {
		if len(c.args) == 1 {
			return c.printQueue(c.args[0])
		}

		return list(c, func(limit int) ([]failed.WaitingEntry, error) { return c.Operator.WaitingKeys(c.ctx, filter, limit) },
			func() (int, error) { return c.Failed.CountKeys(c.ctx, filter) }, writeWaiting)
	}, limited, keyFlags(&filter))
}

// keyFlags adds the flags that select waiting keys.
func keyFlags(f *failed.KeyFilter) flag {
	return func(_ *options, flags *pflag.FlagSet) {
		flags.StringVar(&f.Consumer, "consumer", "", "select keys of this consumer")
		flags.StringVar(&f.Key, "key", "", "select this key")
	}
}

var writeWaiting = table("ID CONSUMER KEY BLOCKED ATTEMPTS DUE ERROR", func(e failed.WaitingEntry) []any {
	return []any{e.ID, e.Consumer, oneLine(e.Key, 60), e.Blocked, e.Attempts, e.DueAt, oneLine(e.Error, 100)}
})

func (c *call) printQueue(arg string) error {
	id, err := entryID(arg)
	if err != nil {
		return err
	}

	queue, err := c.Failed.Queue(c.ctx, id)
	if err != nil {
		return err
	}

	return c.print(queue, func(w io.Writer) {
		for i, e := range queue {
			if i > 0 {
				fmt.Fprintln(w)
			}

			row(w, "position", fmt.Sprintf("%d of %d", i+1, len(queue)))
			writeEntry(w, failed.Exported{Entry: e})
		}
	})
}
