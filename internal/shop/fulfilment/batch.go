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

// batch carries out the decisions on the events of a transaction: each is made
// on the order as the one before left it, and all are saved set by set.
type batch struct {
	process *Process
	orders  map[string]order.Order

	changes  []order.Change
	payments []payment.Payment
	refunds  []payment.Refunded
	reserved []inventory.Demand
	released []inventory.Demand
	sold     []inventory.Demand
	outgoing []event.Outgoing
}

// open locks the orders with these ids until the transaction ends and loads
// the captures of those that do not wait for their payment. Those that wait, as
// almost all do, have none.
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

// openWithoutCaptures is open for a command that neither reads nor refunds
// captures. It saves reading the streams of paid orders.
func (p *Process) openWithoutCaptures(ctx context.Context, tx pgx.Tx, ids []string) (*batch, error) {
	orders, err := p.orders.Lock(ctx, tx, ids)
	if err != nil {
		return nil, err
	}

	return p.batchOf(orders, len(ids)), nil
}

// batchOf returns a batch of n events on these orders.
func (p *Process) batchOf(orders map[string]order.Order, n int) *batch {
	return &batch{process: p, orders: orders, changes: make([]order.Change, 0, n), outgoing: make([]event.Outgoing, 0, n)}
}

// decide makes the decision on each event. command may return nil: there is
// nothing to decide.
func decide[E message](b *batch, events []E, command func(e E) Command) error {
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

	return rejected.Err()
}

func (b *batch) decide(meta event.Meta, id string, c Command) error {
	o, exists := b.orders[id]
	if !exists {
		o.ID = id
	}

	d, err := Decide(o, c)
	if err != nil {
		return missing(c, err)
	}

	b.orders[id] = d.Order

	if len(d.Events) > 0 {
		b.changes = append(b.changes, order.Change{Order: d.Order, Events: d.Events, MessageID: meta.ID})
	}

	b.account(d)
	b.move(d)

	for _, p := range d.Publish {
		b.outgoing = append(b.outgoing, meta.Then(p))
	}

	for _, r := range d.Refunds {
		out := meta.Then(r)
		// Whatever asks for it: a capture is given back once.
		out.ID = event.ForeignID(TopicRefundRequested, r.OrderID, r.TransactionID)
		b.outgoing = append(b.outgoing, out)
	}

	return nil
}

// missing says what to do about an order that is not there. What follows from
// an order cannot come before it; what others say may: it has another topic.
func missing(c Command, err error) error {
	if event.KindOf(err) != event.NotFound {
		return err
	}

	switch c.(type) {
	case Complete, Expire:
		return event.Reject(fmt.Errorf("order_id: %w", err))
	default:
		return early(err)
	}
}

// early is the error of a message that may have overtaken its order.
func early(err error) error {
	return fmt.Errorf("order_id: %w yet, expected %s before", err, TopicOrderCreated)
}

// account collects what the payments have to say: it is in the events.
func (b *batch) account(d Decision) {
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
		default:
			continue
		}

		b.payments = append(b.payments, payment.Payment{Charge: charge, Outcome: outcome})
	}
}

func (b *batch) move(d Decision) {
	switch d.Stock {
	case ReserveStock:
		b.reserved = append(b.reserved, demandOf(d.Order.Lines))
	case ReleaseStock:
		b.released = append(b.released, demandOf(d.Order.Lines))
	case SellStock:
		b.sold = append(b.sold, demandOf(d.Order.Lines))
	case KeepStock:
	}
}

// save stores what was decided, orders before stock, and returns what follows.
func (b *batch) save(ctx context.Context, tx pgx.Tx, store func(context.Context, pgx.Tx, []order.Change) error) ([]event.Outgoing, error) {
	if err := store(ctx, tx, b.changes); err != nil {
		return nil, err
	}

	if err := b.process.payments.Record(ctx, tx, b.payments); err != nil {
		return nil, err
	}

	if err := b.process.payments.RecordRefunds(ctx, tx, b.refunds); err != nil {
		return nil, err
	}

	if err := b.process.inventory.Reserve(ctx, tx, b.reserved); err != nil {
		return nil, err
	}

	if err := b.process.inventory.Release(ctx, tx, b.released); err != nil {
		return nil, err
	}

	return b.outgoing, b.process.inventory.Sell(ctx, tx, b.sold)
}
