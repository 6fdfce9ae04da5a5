package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
)

// skipped is the result of `failed skip`.
type skipped struct {
	failed.Skipped
	action
}

func newFailedSkip(opts *options) *cobra.Command {
	var w wait

	return operation(opts, &cobra.Command{
		Use: "skip ID", Short: "Stop the first message of a waiting key, so that the next one is tried",
		Long: `Stop the first message of a waiting key. You can edit and requeue it later. The next
message of the key is tried immediately; --wait waits until it has been tried.`,
		Example: `  millrace failed skip 17 --why "the order is a test"`,
	}, func(c *call) error {
		id, err := entryID(c.args[0])
		if err != nil {
			return err
		}

		result := skipped{action: action{Request: c.by.Request, Held: []operate.Held{}}}

		if result.Skipped, err = c.Failed.Skip(c.ctx, id, c.by); err != nil {
			return err
		}

		var followErr error
		if result.Next != 0 {
			followErr = c.follow(&result.action, map[string]int{result.Consumer: 1}, &w)
		}

		// Print the outcome, even if following the message failed.
		err = c.print(result, func(out io.Writer) {
			fmt.Fprintf(out, "skipped message %d; it is stopped now (see `millrace failed show %d`)\n", id, id)

			if result.Next != 0 {
				fmt.Fprintf(out, "message %d, the next of its key, is due now\n", result.Next)
			}

			writeFollowed(out, result.action)
		})

		return cmp.Or(followErr, err, result.err())
	}, recorded, w.flags)
}
