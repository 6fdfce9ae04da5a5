package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/analytics"
)

func newAnalyticsTop(opts *options) *cobra.Command {
	var days int

	return listing(opts, &cobra.Command{
		Use: "top", Short: "Show the most frequent events", Example: "  millrace analytics top --days 7 --limit 5",
	}, func(c *call, limit int) ([]analytics.Count, error) { return c.Analytics.Top(c.ctx, days, limit) },
		func(c *call) (int, error) { return c.Analytics.CountTop(c.ctx, days) },
		func(w io.Writer, counts []analytics.Count) {
			if len(counts) == 0 {
				fmt.Fprintf(w, "no events in the last %s\n", event.Plural(days, "day", "days"))
			}

			for _, e := range counts {
				row(w, oneLine(e.Event, 40), e.Count, bar(e.Count, counts[0].Count))
			}
		}, recent(&days))
}

// recent adds --days.
func recent(days *int) flag {
	return number(days, "days", 14, maxDays, "cover this many days, including today")
}

// barWidth is the length of the longest bar in characters.
const barWidth = 40

func bar(count, longest int64) string {
	if count == 0 {
		return ""
	}

	return strings.Repeat("█", max(1, int(count*barWidth/longest)))
}
