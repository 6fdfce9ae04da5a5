// Package fulfilment is the order process: the one place where orders, stock
// and payments meet. Each step takes a batch of events and the transaction,
// and returns the events that follow.
package fulfilment

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Process runs orders from created to their end.
type Process struct {
	orders    *order.Service
	inventory *inventory.Service
	payments  *payment.Service
}

// NewProcess returns the process over its three services.
func NewProcess(orders *order.Service, stock *inventory.Service, payments *payment.Service) *Process {
	return &Process{orders: orders, inventory: stock, payments: payments}
}

// Place creates orders and reserves stock for all lines of each, or none. An
// order that exists already with the same body changes nothing; with another
// body it is rejected.
func (p *Process) Place(ctx context.Context, tx pgx.Tx, events []event.Event[OrderCreated]) ([]event.Outgoing, error) {
	known, err := p.orders.Find(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	shortages, err := p.allocate(ctx, tx, known, events)
	if err != nil {
		return nil, err
	}

	b := p.batchOf(known, len(events))

	err = decide(b, events, func(e event.Event[OrderCreated]) Command {
		return Place{Asked: orderOf(e.Payload.Order), Short: shortages[e.Payload.Order.ID]}
	})
	if err != nil {
		return nil, err
	}

	return b.save(ctx, tx, p.orders.Insert)
}

// allocate returns what is short for orders that are new, the first of each id.
func (p *Process) allocate(ctx context.Context, tx pgx.Tx, known map[string]order.Order, events []event.Event[OrderCreated]) (map[string]*inventory.Shortage, error) {
	var (
		ids     = make([]string, 0, len(events))
		demands = make([]inventory.Demand, 0, len(events))
		found   = make(map[string]*inventory.Shortage, len(events))
	)

	for _, e := range events {
		id := e.Payload.Order.ID
		_, exists := known[id]
		_, again := found[id]

		if !exists && !again {
			found[id] = nil
			ids, demands = append(ids, id), append(demands, demandOf(e.Payload.Order.lines()))
		}
	}

	available, err := p.inventory.Lock(ctx, tx, demands)
	if err != nil {
		return nil, err
	}

	for i, short := range inventory.Allocate(available, demands) {
		found[ids[i]] = short
	}

	return found, nil
}

// Admit lets a charge go ahead when the order waits for exactly this payment.
// One that does not wait any more may have been charged with the answer lost:
// the gateway is asked for it, and charges nothing.
func (p *Process) Admit(ctx context.Context, db postgres.Querier, events []event.Event[PaymentRequested]) ([]error, error) {
	known, err := p.orders.Find(ctx, db, keys(events))
	if err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))
	for i := range events {
		verdicts[i] = admit(known, &events[i].Payload)
	}

	return verdicts, nil
}

func admit(known map[string]order.Order, p *PaymentRequested) error {
	o, exists := known[p.OrderID]

	switch {
	case !exists:
		return event.Reject(fmt.Errorf("order_id: there is no order %s", p.OrderID))
	case !o.Total.Equal(*p.Amount):
		return event.Reject(fmt.Errorf("amount: is %s, expected the order's total %s", p.Amount, o.Total))
	case o.Currency != p.currency():
		return event.Reject(fmt.Errorf("currency: is %s, expected the order's %s", p.currency(), o.Currency))
	case o.Status == order.StatusInventoryUnavailable:
		return event.ErrSkip // it never waited for one
	}

	p.late = o.Status != order.StatusInventoryReserved

	return nil
}

// Charge asks the gateway for the order's total.
func (p *Process) Charge(ctx context.Context, e event.Event[PaymentRequested]) (payment.Outcome, error) {
	if e.Payload.late {
		return p.payments.Find(ctx, chargeOf(e.Payload))
	}

	return p.payments.Charge(ctx, chargeOf(e.Payload))
}

// Charged is a payment request with the gateway's outcome.
type Charged = event.Effected[PaymentRequested, payment.Outcome]

// Settle records the outcomes: a captured order is paid, a declined one ends
// and gives its stock back. A capture that the order does not wait for any more
// is refunded.
func (p *Process) Settle(ctx context.Context, tx pgx.Tx, charged []Charged) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(charged))
	if err != nil {
		return nil, err
	}

	err = decide(b, charged, func(c Charged) Command {
		if c.Result == nil {
			return nil
		}

		return Settle{Outcome: *c.Result, Attempt: c.Payload.Attempt}
	})
	if err != nil {
		return nil, err
	}

	return b.save(ctx, tx, p.orders.Update)
}

// Complete ends paid orders: their stock is sold. A completed order stays as
// it is, and so does one that was cancelled; another that is not paid cannot be
// completed.
func (p *Process) Complete(ctx context.Context, tx pgx.Tx, events []event.Event[OrderCompleted]) ([]event.Outgoing, error) {
	b, err := p.openWithoutCaptures(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	if err := decide(b, events, func(event.Event[OrderCompleted]) Command { return Complete{} }); err != nil {
		return nil, err
	}

	return b.save(ctx, tx, p.orders.Update)
}

func orderOf(o NewOrder) order.Order {
	return order.Order{ID: o.ID, Total: *o.TotalAmount, Currency: o.currency(), Lines: o.lines()}
}

func chargeOf(p PaymentRequested) payment.Charge {
	return payment.Charge{OrderID: p.OrderID, Attempt: p.Attempt, Amount: *p.Amount, Currency: p.currency()}
}

func demandOf(lines []order.Line) inventory.Demand {
	demand := make(inventory.Demand, len(lines))
	for _, line := range lines {
		demand[line.ProductID] += line.Quantity
	}

	return demand
}

// message is an event of any payload.
type message interface {
	AggregateID() string
	Identity() event.Meta
}

func keys[E message](events []E) []string {
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.AggregateID()
	}

	return ids
}
