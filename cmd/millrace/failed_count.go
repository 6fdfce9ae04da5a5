package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedCount(opts *options) *cobra.Command {
	var (
		selected selection
		limit    int
		by       string
	)

	cmd := query(opts, &cobra.Command{
		Use: "count", Short: "Count failed messages by topic, consumer, reason, key or release",
		Example: "  millrace failed count --by consumer --since 2h",
	}, func(c *call) ([]failed.Count, error) {
		if known := []string{"topic", "consumer", "reason", "key", "release"}; !slices.Contains(known, by) {
			return nil, usageError{fmt.Errorf("--by: is %q, expected %s", by, strings.Join(known, ", "))}
		}

		f, err := selected.filter(c)
		if err != nil {
			return nil, err
		}

		return c.Failed.CountBy(c.ctx, f, by, limit)
	}, func(w io.Writer, counts []failed.Count) {
		table(strings.ToUpper(by)+" MESSAGES KEYS FIRST LAST", func(c failed.Count) []any {
			return []any{oneLine(c.Value, 60), c.Entries, c.Keys, c.FirstAt, c.LastAt}
		})(w, counts)
	})
	selected.listFlags(cmd, "stopped")
	limitFlag(cmd, &limit)
	cmd.Flags().StringVar(&by, "by", "consumer", "count by topic, consumer, reason, key or release")

	return cmd
}
