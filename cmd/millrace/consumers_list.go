package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/consumer"
)

func newConsumersList(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "list", Short: "List the consumers and their state", Example: "  millrace consumers list",
	}, func(c *call) ([]consumer.State, error) { return c.Operator.Consumers(c.ctx) }, writeConsumers)
}
