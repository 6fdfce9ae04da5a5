package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
)

func newOrdersCancel(opts *options) *cobra.Command {
	var reason string

	return operation(opts, &cobra.Command{
		Use: "cancel ID", Short: "Request the cancellation of an order",
		Long: `Request the cancellation of an order, whatever it is waiting for: the stock that
it holds is released, and a payment is refunded. An order that has already ended
stays as it is, and orders.cancel.refused is published.`,
		Example: `  millrace orders cancel order_123 --reason "changed my mind"`,
	}, func(c *call) error {
		// The request may precede the order, but a person means one that exists.
		if _, err := c.Orders.Show(c.ctx, c.args[0]); err != nil {
			return err
		}

		payload, err := event.Encode(fulfilment.CancelRequested{OrderID: c.args[0], Reason: reason})
		if err != nil {
			return err
		}

		return newPublisher(c, fulfilment.TopicCancelRequested).single(payload)
	}, text(&reason, "reason", "", "record this reason"))
}
