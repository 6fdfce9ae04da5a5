package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/consumer"
)

func newConsumersResume(opts *options) *cobra.Command {
	return switchConsumer(opts, &cobra.Command{
		Use: "resume CONSUMER", Short: "Resume a paused consumer on all replicas", Example: "  millrace consumers resume fulfilment.charge",
	}, "resumed", (*consumer.Router).Resume)
}
