package fulfilment

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// batch collects the changes decided in one transaction, and saves them table by
// table. Each decision sees the order as the previous one left it.
type batch struct {
	process *Process
	orders  map[string]order.Order
	// store saves the changes of orders: Insert or Update.
	store func(*pgx.Batch, []order.Change) error

	changes  []order.Change
	payments []payment.Payment
	refunds  []payment.Refunded
	stock    map[Stock][]inventory.Demand
	outgoing []event.Outgoing
}

// open locks the orders with these ids until the transaction ends. It loads their
// captures, except for orders that are waiting for payment, which have none.
func (p *Process) open(ctx context.Context, tx pgx.Tx, ids []string) (*batch, error) {
	b, err := p.openWithoutCaptures(ctx, tx, ids)
	if err != nil {
		return nil, err
	}

	var captured []string

	for id, o := range b.orders {
		if o.Status != order.StatusInventoryReserved {
			captured = append(captured, id)
		}
	}

	return b, p.orders.Recall(ctx, tx, b.orders, captured)
}

// openWithoutCaptures is open for commands that neither read nor refund captures.
// It avoids reading the streams of paid orders.
func (p *Process) openWithoutCaptures(ctx context.Context, tx pgx.Tx, ids []string) (*batch, error) {
	orders, err := p.orders.Lock(ctx, tx, ids)
	if err != nil {
		return nil, err
	}

	return &batch{process: p, orders: orders, store: p.orders.Update}, nil
}

// apply decides on each event, saves the decisions and returns the resulting events. If
// command returns nil, there is nothing to decide.
func apply[E message](ctx context.Context, tx pgx.Tx, b *batch, events []E, command func(e E) Command) ([]event.Outgoing, error) {
	b.changes = make([]order.Change, 0, len(events))
	b.outgoing = make([]event.Outgoing, 0, len(events))
	b.stock = map[Stock][]inventory.Demand{}
	rejected := event.RejectSome{}

	for i, e := range events {
		c := command(e)
		if c == nil {
			continue
		}

		if err := b.decide(e.Identity(), e.AggregateID(), c); err != nil {
			rejected[i] = err
		}
	}

	if err := rejected.Err(); err != nil {
		return nil, err
	}

	return b.save(ctx, tx)
}

func (b *batch) decide(meta event.Meta, id string, c Command) error {
	o, exists := b.orders[id]
	if !exists {
		o.ID = id
	}

	d, err := Decide(o, c)
	if err != nil {
		return classifyNotFound(c, err)
	}

	b.orders[id] = d.Order

	if len(d.Events) > 0 {
		b.changes = append(b.changes, order.Change{Order: d.Order, Events: d.Events, MessageID: meta.ID})
	}

	b.addPayments(d)

	if d.Stock != KeepStock {
		b.stock[d.Stock] = append(b.stock[d.Stock], demandOf(d.Order.Lines))
	}

	for _, p := range d.Publish {
		b.outgoing = append(b.outgoing, meta.Then(p))
	}

	for _, r := range d.Refunds {
		out := meta.Then(r)
		// The id depends on the capture alone, so several requests refund it
		// once. A request after a failed refund has an id of its own.
		parts := []string{TopicRefundRequested, r.OrderID, r.TransactionID}
		if r.FailedRefundID != "" {
			parts = append(parts, r.FailedRefundID)
		}

		out.ID = event.ForeignID(parts...)
		b.outgoing = append(b.outgoing, out)
	}

	return nil
}

// classifyNotFound rejects commands that only the order itself can cause: they cannot
// arrive before the order, so it does not exist. Other commands come from elsewhere
// and may overtake the order.
func classifyNotFound(c Command, err error) error {
	if event.KindOf(err) != event.NotFound {
		return err
	}

	switch c.(type) {
	case Complete, Expire:
		return event.Reject(fmt.Errorf("order_id: %w", err))
	default:
		return notYetCreated(err)
	}
}

// notYetCreated is the error for a message that may have overtaken its order.
func notYetCreated(err error) error {
	return event.Await(fmt.Errorf("order_id: %w yet", err), TopicOrderCreated)
}

// addPayments collects payments and refunds from the events of a decision.
func (b *batch) addPayments(d Decision) {
	for _, data := range d.Events {
		charge := payment.Charge{OrderID: d.Order.ID, Amount: d.Order.Total, Currency: d.Order.Currency}

		var outcome payment.Outcome

		switch data := data.(type) {
		case order.Paid:
			charge.Attempt, outcome.TransactionID = data.Attempt, data.TransactionID
		case order.CapturedLate:
			charge.Attempt, outcome.TransactionID = data.Attempt, data.TransactionID
		case order.PaymentFailed:
			charge.Attempt, outcome.Declined = data.Attempt, data.Reason
		case order.PaymentRefunded:
			b.refunds = append(b.refunds, payment.Refunded{OrderID: d.Order.ID, TransactionID: data.TransactionID, RefundID: data.RefundID})

			continue
		case order.RefundFailed:
			b.refunds = append(b.refunds, payment.Refunded{
				OrderID: d.Order.ID, TransactionID: data.TransactionID, RefundID: data.RefundID, Failure: data.Reason,
			})

			continue
		default:
			continue
		}

		b.payments = append(b.payments, payment.Payment{Charge: charge, Outcome: outcome})
	}
}

// save stores the decisions, in one round trip, and returns the resulting events. It locks
// orders before stock, as every handler does.
func (b *batch) save(ctx context.Context, tx pgx.Tx) ([]event.Outgoing, error) {
	writes := &pgx.Batch{}
	if err := b.store(writes, b.changes); err != nil {
		return nil, err
	}

	payment.Record(writes, b.payments)
	payment.RecordRefunds(writes, b.refunds)
	b.process.inventory.Reserve(writes, b.stock[ReserveStock])
	b.process.inventory.Release(writes, b.stock[ReleaseStock])
	b.process.inventory.Sell(writes, b.stock[SellStock])

	return b.outgoing, tx.SendBatch(ctx, writes).Close()
}
