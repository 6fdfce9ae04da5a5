package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/activity"
)

func newFailedSkip(opts *options) *cobra.Command {
	var by activity.Actor

	cmd := operation(opts, &cobra.Command{
		Use: "skip ID", Short: "Stop the first message of a waiting key, so that the next one is tried",
		Long: `Stop the first message of a waiting key. You can edit and requeue it later. The
next message of its key is tried at once.`,
		Example: `  millrace failed skip 17 --why "the order is a test"`,
	}, func(c *call) error {
		id, err := entryID(c.args[0])
		if err != nil {
			return err
		}

		if err := c.Failed.Skip(c.ctx, id, by); err != nil {
			return err
		}

		return c.print(map[string]int64{"skipped": id}, func(w io.Writer) {
			fmt.Fprintf(w, "skipped message %d; it is stopped now (see `millrace failed show %d`)\n", id, id)
		})
	})
	actorFlags(cmd, &by)

	return cmd
}
