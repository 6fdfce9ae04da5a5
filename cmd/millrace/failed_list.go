package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedList(opts *options) *cobra.Command {
	return failedListing(opts, &cobra.Command{
		Use: "list", Short: "List failed messages, newest first",
		Example: `  millrace failed list --topic orders.created --since 2h
  millrace failed list --state all --key order_123`,
	}, func(c *call, f failed.Filter, limit int) ([]failed.Entry, error) {
		return c.Failed.List(c.ctx, f, limit)
	}, func(c *call, f failed.Filter) (int, error) {
		return c.Failed.CountEntries(c.ctx, f)
	}, table("ID STATE TOPIC KEY REASON GROUP LAST ERROR", func(e failed.Entry) []any {
		return []any{e.ID, state(e), e.Topic, oneLine(e.Key, 24), e.Reason, e.Group, e.LastAt, oneLine(e.Error, 100)}
	}))
}
