package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/operate"
)

func newConsumersList(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "list", Short: "List the consumers and their state", Example: "  millrace consumers list",
	}, func(c *call) ([]consumer.State, error) { return c.Operator.Consumers(c.ctx) }, writeConsumers)
}

// writeConsumers prints consumers as a table.
var writeConsumers = table("CONSUMER TOPIC STATE", func(c consumer.State) []any {
	return []any{c.Consumer, c.Topic, operate.Describe(c, stamp)}
})
