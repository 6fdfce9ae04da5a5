package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedCount(opts *options) *cobra.Command {
	var by string

	return failedListing(opts, &cobra.Command{
		Use: "count", Short: "Count failed messages by topic, consumer, reason, key or release",
		Example: "  millrace failed count --by consumer --since 2h",
	}, func(c *call, f failed.Filter, limit int) ([]failed.Count, error) {
		return c.Failed.CountBy(c.ctx, f, by, limit)
	}, func(c *call, f failed.Filter) (int, error) {
		return c.Failed.CountValues(c.ctx, f, by)
	}, func(w io.Writer, counts []failed.Count) {
		table(strings.ToUpper(by)+" MESSAGES KEYS FIRST LAST", func(c failed.Count) []any {
			return []any{oneLine(c.Value, 60), c.Entries, c.Keys, c.FirstAt, c.LastAt}
		})(w, counts)
	}, text(&by, "by", "consumer", "count by topic, consumer, reason, key or release"))
}
