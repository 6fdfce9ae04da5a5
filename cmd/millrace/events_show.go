package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/eventstore"
)

func newEventsShow(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "show STREAM", Short: "Show the events of a stream", Example: "  millrace events show order-order_123",
	}, func(c *call) ([]eventstore.Event, error) { return c.Operator.Stream(c.ctx, c.args[0]) },
		table("VERSION TYPE RECORDED DATA", func(e eventstore.Event) []any {
			return []any{e.Version, e.Type, e.RecordedAt, string(e.Data)}
		}))
}
