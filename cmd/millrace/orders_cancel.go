package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/order"
)

func newOrdersCancel(opts *options) *cobra.Command {
	var (
		reason string
		w      wait
	)

	return operation(opts, &cobra.Command{
		Use: "cancel ORDER", Short: "Request the cancellation of an order",
		Long: `Request the cancellation of an order: its stock is released, and its payment, if any,
is refunded. An order that has already ended cannot be cancelled. If it ends before
the request is processed, orders.cancel.refused is published.

--wait waits until the order has ended and prints its status. Exit code 1 if it was not
cancelled.`,
		Example: `  millrace orders cancel order_123 --reason "changed my mind" --wait`,
	}, func(c *call) error {
		// The event may precede its order, but an operator means an order that exists.
		found, err := c.ShowOrder(c.ctx, c.args[0])

		switch {
		case err != nil:
			return err
		case found.Status.Terminal():
			return event.Errorf(event.Conflict, "order %s is already %s and cannot be cancelled", found.ID, found.Status)
		}

		payload, err := event.Encode(fulfilment.CancelRequested{OrderID: c.args[0], Reason: reason})
		if err != nil {
			return err
		}

		if err := newPublisher(c, fulfilment.TopicCancelRequested).single(payload); err != nil || !w.yes {
			return err
		}

		return c.awaitEnd(found.ID, w.timeout)
	}, text(&reason, "reason", "", "record this reason"), w.flags)
}

// awaitEnd waits until an order has ended and prints its status. It returns an error
// unless the order was cancelled.
func (c *call) awaitEnd(id string, timeout time.Duration) error {
	waiting, cancel := context.WithTimeout(c.ctx, timeout)
	defer cancel()

	for {
		found, err := c.Orders.Show(context.WithoutCancel(c.ctx), id)

		switch {
		case err != nil:
			return err
		case found.Status == order.StatusCancelled:
			return c.print(map[string]string{"order_id": id, "status": string(found.Status)}, func(out io.Writer) {
				fmt.Fprintf(out, "order %s is %s\n", id, found.Status)
			})
		case found.Status.Terminal():
			return event.Errorf(event.Conflict, "order %s is %s: it ended before it could be cancelled", id, found.Status)
		case waiting.Err() != nil:
			return event.Errorf(event.Conflict, "order %s is still %s: the request was not applied in time", id, found.Status)
		}

		_ = backoff.Sleep(waiting, orderPoll)
	}
}

// orderPoll is how often awaitEnd reads the order.
const orderPoll = 250 * time.Millisecond
