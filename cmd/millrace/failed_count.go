package main

import (
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedCount(opts *options) *cobra.Command {
	var by string

	return failedQuery(opts, &cobra.Command{
		Use: "count", Short: "Count failed messages by topic, consumer, reason, key or release",
		Example: "  millrace failed count --by consumer --since 2h",
	}, func(c *call, f failed.Filter) ([]failed.Count, error) {
		if known := []string{"topic", "consumer", "reason", "key", "release"}; !slices.Contains(known, by) {
			return nil, event.Errorf(event.Invalid, "--by: is %q, expected %s", by, strings.Join(known, ", "))
		}

		return c.Failed.CountBy(c.ctx, f, by, c.limit)
	}, func(w io.Writer, counts []failed.Count) {
		table(strings.ToUpper(by)+" MESSAGES KEYS FIRST LAST", func(c failed.Count) []any {
			return []any{oneLine(c.Value, 60), c.Entries, c.Keys, c.FirstAt, c.LastAt}
		})(w, counts)
	}, text(&by, "by", "consumer", "count by topic, consumer, reason, key or release"))
}
