package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newFailedSkip(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "skip ID", Short: "Stop the first message of a waiting key, so that the next one is tried",
		Long: `Stop the first message of a waiting key. You can edit and requeue it later. The
next message of its key is tried at once.`,
		Example: `  millrace failed skip 17 --why "the order is a test"`,
	}, func(c *call) (map[string]int64, error) {
		id, err := entryID(c.args[0])
		if err == nil {
			err = c.Failed.Skip(c.ctx, id, c.by)
		}

		return map[string]int64{"skipped": id}, err
	}, func(w io.Writer, done map[string]int64) {
		id := done["skipped"]
		fmt.Fprintf(w, "skipped message %d; it is stopped now (see `millrace failed show %d`)\n", id, id)
	}, recorded)
}
