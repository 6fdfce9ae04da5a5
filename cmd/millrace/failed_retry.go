package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedRetry(opts *options) *cobra.Command {
	var (
		filter failed.KeyFilter
		all    bool
	)

	return query(opts, &cobra.Command{
		Use: "retry [ID]", Short: "Retry waiting messages now",
		Example: `  millrace failed retry 17
  millrace failed retry --consumer fulfilment.charge --why "the provider is back"`,
	}, func(c *call) (map[string]int64, error) {
		ids, err := entryIDs(c.args)
		if err != nil {
			return nil, err
		}

		for _, id := range ids {
			filter.ID = id
		}

		due, err := c.Operator.Retry(c.ctx, filter, all, c.by)

		return map[string]int64{"due": due}, err
	}, func(w io.Writer, done map[string]int64) {
		fmt.Fprintf(w, "%d keys are due now; the running service tries them within a second\n", done["due"])
	}, recorded, keyFlags(&filter), yes(&all, "all", "select all waiting keys"))
}
