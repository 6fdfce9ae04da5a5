package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/analytics"
)

func newAnalyticsTop(opts *options) *cobra.Command {
	var days, limit int

	cmd := query(opts, &cobra.Command{
		Use: "top", Short: "Show the most frequent events", Example: "  millrace analytics top --days 7 --limit 5",
	}, func(c *call) ([]analytics.Count, error) { return c.Analytics.Top(c.ctx, days, limit) },
		func(w io.Writer, counts []analytics.Count) {
			if len(counts) == 0 {
				fmt.Fprintf(w, "no events in the last %d days\n", days)
			}

			for _, e := range counts {
				row(w, oneLine(e.Event, 40), e.Count, bar(e.Count, counts[0].Count))
			}
		})
	daysFlag(cmd, &days)
	limitFlag(cmd, &limit)

	return cmd
}
