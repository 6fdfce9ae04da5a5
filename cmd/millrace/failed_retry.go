package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedRetry(opts *options) *cobra.Command {
	var (
		filter failed.KeyFilter
		by     activity.Actor
		all    bool
	)

	cmd := operation(opts, &cobra.Command{
		Use: "retry [ID]", Short: "Try waiting messages now",
		Example: `  millrace failed retry 17
  millrace failed retry --consumer fulfilment.charge --why "the provider is back"`,
	}, func(c *call) error {
		ids, err := entryIDs(c.args)
		if err != nil {
			return err
		}

		for _, id := range ids {
			filter.ID = id
		}

		due, err := c.Operator.Retry(c.ctx, filter, all, by)
		if err != nil {
			return err
		}

		return c.print(map[string]int64{"due": due}, func(w io.Writer) {
			fmt.Fprintf(w, "%d keys are due now; the running service tries them within a second\n", due)
		})
	})
	keyFlags(cmd, &filter)
	cmd.Flags().BoolVar(&all, "all", false, "select all waiting keys")
	actorFlags(cmd, &by)

	return cmd
}
