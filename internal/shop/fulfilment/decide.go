package fulfilment

import (
	"fmt"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Decide is the order process: it returns the consequences of a command for an
// order in its current state. It does no I/O. An order with the empty status does
// not exist. The caller has loaded the captures (order.Service.Recall), unless the
// order is waiting for payment or the command is Place or Complete.
//
// Its errors are [order.NotFound], or rejections of the command.
func Decide(o order.Order, c Command) (Decision, error) {
	if _, placing := c.(Place); !placing && o.Status == "" {
		return Decision{}, order.NotFound(o.ID)
	}

	d := Decision{Order: o}
	if c.decide(&d); d.err != nil {
		return Decision{}, d.err
	}

	return d, nil
}

// Decision holds the consequences of a command.
type Decision struct {
	// Order is the order after the events.
	Order order.Order
	// Events go into the order's stream. Those about money also go into the
	// payments table.
	Events []eventstore.Data
	// Stock is the stock movement for all lines.
	Stock Stock
	// Refunds are requests to refund captures.
	Refunds []RefundRequested
	// Publish holds the payloads to publish.
	Publish []event.Payload

	err error // the first rejection of the command; if set, nothing else applies
}

// Stock is a movement of an order's stock.
type Stock string

// Stock movements.
const (
	KeepStock    Stock = ""
	ReserveStock Stock = "reserve"
	ReleaseStock Stock = "release"
	SellStock    Stock = "sell"
)

// Command is a request about an order, or news about its payment.
type Command interface{ decide(d *Decision) }

// Commands.
type (
	// Place requests a new order.
	Place struct {
		Asked order.Order
		// Short is the shortage; nil if all lines are in stock.
		Short *inventory.Shortage
	}
	// Settle carries the outcome of a charge, from the gateway's answer or from a
	// provider's report. The zero outcome means that there was no charge.
	Settle struct {
		payment.Outcome

		Attempt int
		// Money is what was charged, if it must still be compared with the order's
		// total.
		Money *Money
	}
	// Complete sells the goods of a paid order.
	Complete struct{}
	// Cancel cancels an order. Found is what the gateway knew about its charge.
	Cancel struct {
		Reason string
		Found  payment.Outcome
	}
	// Expire ends an order that was not paid in time. Found is what the gateway knew
	// about its charge.
	Expire struct{ Found payment.Outcome }
	// Refunded reports that a capture has been refunded.
	Refunded struct {
		TransactionID string
		RefundID      string
		Money         *Money
	}
	// FailRefund reports that the provider could not make a refund that it had
	// accepted.
	FailRefund struct {
		TransactionID string
		RefundID      string
		Reason        string
	}
	// Dispute reports that a capture is disputed.
	Dispute struct {
		TransactionID string
		Reason        string
	}
)

// Money is an amount with its currency.
type Money struct {
	Amount   money.Amount
	Currency string
}

// reject rejects the command, if err is the first reason to do so.
func (d *Decision) reject(err error) {
	if err != nil && d.err == nil {
		d.err = event.Reject(err)
	}
}

// record applies an event to the order and adds it to the decision. An event
// that does not apply rejects the command.
func (d *Decision) record(data eventstore.Data) {
	next, err := d.Order.Apply(data)
	if err != nil {
		d.reject(fmt.Errorf("order_id: %w", err))
	}

	d.Order, d.Events = next, append(d.Events, data)
}

// publish adds a payload to publish.
func (d *Decision) publish(p event.Payload) { d.Publish = append(d.Publish, p) }

// releaseStock releases the stock that the order holds, if any.
func (d *Decision) releaseStock() {
	if d.Order.Status.HoldsStock() {
		d.Stock = ReleaseStock
	}
}

// refund requests a refund of a capture.
func (d *Decision) refund(transactionID string) { d.refundAfter(transactionID, "") }

// refundAfter requests a refund of a capture after an earlier refund of it has failed.
// The request stays stopped until a person has refunded the capture in another way.
func (d *Decision) refundAfter(transactionID, failedID string) {
	total := d.Order.Total
	d.Refunds = append(d.Refunds, RefundRequested{
		OrderID: d.Order.ID, TransactionID: transactionID, Amount: &total, Currency: d.Order.Currency, Reason: d.Order.Status,
		FailedRefundID: failedID,
	})
}

// checkMoney rejects an amount other than the order's total.
func (d *Decision) checkMoney(m *Money) {
	if m != nil {
		d.reject(checkTotal(d.Order, m.Amount, m.Currency))
	}
}

func checkTotal(o order.Order, amount money.Amount, currency string) error {
	switch {
	case !amount.Equal(o.Total):
		return fmt.Errorf("amount: is %s, expected the order's total %s", amount, o.Total)
	case currency != o.Currency:
		return fmt.Errorf("currency: is %s, expected the order's %s", currency, o.Currency)
	}

	return nil
}

func (c Place) decide(d *Decision) {
	id := c.Asked.ID

	if d.Order.Status != "" {
		if !d.Order.Same(c.Asked) {
			d.err = event.RejectAs(event.ReasonConflict,
				fmt.Errorf("order.id: %s exists with a different body, expected a new id or the same order", id))
		}

		return
	}

	d.record(order.Created{Total: c.Asked.Total, Currency: c.Asked.Currency, Lines: c.Asked.Lines})

	if short := c.Short; short != nil {
		d.record(order.InventoryUnavailable{ProductID: short.ProductID, Requested: short.Requested, Available: short.Available})
		d.publish(OrderRejected{
			OrderID: id,
			Reason:  order.StatusInventoryUnavailable,
			Detail:  fmt.Sprintf("%d of %s requested, %d available", short.Requested, short.ProductID, short.Available),
		})

		return
	}

	d.Stock = ReserveStock
	d.record(order.InventoryReserved{})

	total := c.Asked.Total
	d.publish(PaymentRequested{OrderID: id, Amount: &total, Currency: money.Currency(c.Asked.Currency)})
}

func (c Settle) decide(d *Decision) {
	waiting := d.Order.Status == order.StatusInventoryReserved

	switch {
	case c.Captured():
		d.checkMoney(c.Money)
		d.addCapture(c.TransactionID, c.Attempt)

		if waiting {
			d.publish(OrderCompleted{OrderID: d.Order.ID})
		}
	case waiting && c.Declined != "":
		d.releaseStock()
		d.record(order.PaymentFailed{Reason: c.Declined, Attempt: c.Attempt})
		d.publish(OrderRejected{OrderID: d.Order.ID, Reason: order.StatusPaymentFailed, Detail: c.Declined})
	}
}

// addCapture records a capture once. If the order is not waiting for payment, the
// capture is refunded.
func (d *Decision) addCapture(transactionID string, attempt int) {
	if attempt == 1 {
		attempt = 0 // the stream omits the number of the first attempt
	}

	switch _, known := d.Order.Capture(transactionID); {
	case known:
	case d.Order.Status == order.StatusInventoryReserved:
		d.record(order.Paid{TransactionID: transactionID, Attempt: attempt})
	default:
		d.record(order.CapturedLate{TransactionID: transactionID, Attempt: attempt})
		d.refund(transactionID)
	}
}

// decide completes an order once. An order that was cancelled after it was paid
// still receives its orders.completed, which changes nothing.
func (Complete) decide(d *Decision) {
	if d.Order.Status != order.StatusCompleted && d.Order.Status != order.StatusCancelled {
		d.record(order.Completed{})
		d.Stock = SellStock
	}
}

func (c Cancel) decide(d *Decision) {
	if c.Found.Captured() {
		d.addCapture(c.Found.TransactionID, 0)
	}

	switch {
	case d.Order.Status == order.StatusCancelled:
	case d.Order.Status.Terminal():
		d.publish(CancelRefused{OrderID: d.Order.ID, Reason: d.Order.Status})
	default:
		d.cancel(c.Reason)

		// Late captures were refunded when they were recorded.
		for _, capture := range d.Order.Captures {
			if !capture.Late {
				d.refund(capture.TransactionID)
			}
		}
	}
}

func (d *Decision) cancel(reason string) {
	d.releaseStock()
	d.record(order.Cancelled{Reason: reason})
	d.publish(OrderCancelled{OrderID: d.Order.ID, Reason: reason})
}

func (c Expire) decide(d *Decision) {
	if c.Found.Captured() {
		Settle{Outcome: c.Found}.decide(d)
	} else if d.Order.Status == order.StatusInventoryReserved {
		d.releaseStock()
		d.record(order.Expired{})
		d.publish(OrderExpired{OrderID: d.Order.ID})
	}
}

// refundedByProvider is the reason for cancelling an order whose payment the
// provider refunded.
const refundedByProvider = "the provider refunded the payment"

func (c Refunded) decide(d *Decision) {
	d.checkMoney(c.Money)

	capture, known := d.Order.Capture(c.TransactionID)

	switch {
	case capture.RefundID != "":
		return
	case known && capture.FailedRefundID == c.RefundID: // its failure was reported first
		if d.Order.Owes(capture) {
			d.refundAfter(c.TransactionID, c.RefundID)
		}

		return
	case !known && d.Order.Status == order.StatusInventoryReserved:
		d.record(order.Paid{TransactionID: c.TransactionID})
	case !known: // already refunded, so no refund is requested
		d.record(order.CapturedLate{TransactionID: c.TransactionID})
	}

	// A paid order without its money is cancelled. A completed one stays completed.
	if capture, _ = d.Order.Capture(c.TransactionID); d.Order.Status == order.StatusPaid && !capture.Late {
		d.cancel(refundedByProvider)
	}

	total := d.Order.Total
	d.record(order.PaymentRefunded{TransactionID: c.TransactionID, RefundID: c.RefundID})
	d.publish(PaymentRefunded{
		OrderID: d.Order.ID, TransactionID: c.TransactionID, RefundID: c.RefundID, Amount: &total, Currency: d.Order.Currency,
	})
}

func (c FailRefund) decide(d *Decision) {
	capture, known := d.Order.Capture(c.TransactionID)
	told := capture.RefundID == c.RefundID

	if !known || capture.RefundID != "" && !told || capture.FailedRefundID == c.RefundID {
		return
	}

	d.record(order.RefundFailed{TransactionID: c.TransactionID, RefundID: c.RefundID, Reason: c.Reason})

	// If the refund is not recorded yet, its request will discover the failure itself.
	if !told {
		return
	}

	total := d.Order.Total
	d.publish(RefundFailed{
		OrderID: d.Order.ID, TransactionID: c.TransactionID, RefundID: c.RefundID, Reason: c.Reason, Amount: &total, Currency: d.Order.Currency,
	})

	if d.Order.Owes(capture) {
		d.refundAfter(c.TransactionID, c.RefundID)
	}
}

// decide rejects the report, so that a person sees it: only a person can answer a
// dispute.
func (c Dispute) decide(d *Decision) {
	d.reject(fmt.Errorf("transaction_id: %s is disputed: %s; respond to the dispute with the payment provider, then discard this message", c.TransactionID, c.Reason))
}
