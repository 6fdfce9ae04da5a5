package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/analytics"
)

func newAnalyticsDaily(opts *options) *cobra.Command {
	var (
		days int
		name string
	)

	return query(opts, &cobra.Command{
		Use: "daily [EVENT]", Short: "Show how often one event, or all events, occurred per day (UTC)",
		Example: "  millrace analytics daily checkout --days 30",
	}, func(c *call) ([]analytics.Day, error) {
		name = strings.Join(c.args, "")

		return c.Analytics.Daily(c.ctx, name, days)
	}, func(w io.Writer, list []analytics.Day) {
		var longest int64
		for _, d := range list {
			longest = max(longest, d.Count)
		}

		if longest == 0 {
			fmt.Fprintln(w, strings.TrimSpace("no events "+name)+" in the last "+event.Plural(days, "day", "days"))

			return
		}

		for _, d := range list {
			row(w, d.Day.Format(time.DateOnly), d.Count, bar(d.Count, longest))
		}
	}, recent(&days))
}
