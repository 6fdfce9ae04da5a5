package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/consumer"
)

func newConsumersPause(opts *options) *cobra.Command {
	return switchConsumer(opts, &cobra.Command{
		Use: "pause CONSUMER", Short: "Pause a consumer on all replicas; its messages wait",
		Example: `  millrace consumers pause fulfilment.charge --why "the provider is down"`,
	}, "paused", (*consumer.Router).Pause)
}
