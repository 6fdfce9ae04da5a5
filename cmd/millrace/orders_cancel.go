package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
)

func newOrdersCancel(opts *options) *cobra.Command {
	var reason string

	return operation(opts, &cobra.Command{
		Use: "cancel ORDER", Short: "Request the cancellation of an order",
		Long: `Request the cancellation of an order: its stock is released, and its payment, if
any, is refunded. An order that has already ended is not changed, and
orders.cancel.refused is published.`,
		Example: `  millrace orders cancel order_123 --reason "changed my mind"`,
	}, func(c *call) error {
		// The event may precede its order, but an operator means one that exists.
		if _, err := c.ShowOrder(c.ctx, c.args[0]); err != nil {
			return err
		}

		payload, err := event.Encode(fulfilment.CancelRequested{OrderID: c.args[0], Reason: reason})
		if err != nil {
			return err
		}

		return newPublisher(c, fulfilment.TopicCancelRequested).single(payload)
	}, text(&reason, "reason", "", "record this reason"))
}
