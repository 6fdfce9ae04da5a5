// Package fulfilment is the order process: the one place where orders, stock and payments
// meet. Each handler takes a batch of events and a transaction and returns the resulting
// events.
package fulfilment

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Process takes orders from their creation to their end.
type Process struct {
	cfg         Config
	orders      *order.Service
	inventory   *inventory.Service
	gateway     payment.Gateway
	undelivered event.Undelivered
}

// NewProcess returns a process that charges through gateway.
func NewProcess(cfg Config, orders *order.Service, stock *inventory.Service, gateway payment.Gateway, undelivered event.Undelivered) *Process {
	return &Process{cfg: cfg, orders: orders, inventory: stock, gateway: gateway, undelivered: undelivered}
}

// Place creates orders. For each order it reserves the stock of all lines, or of
// none. It accepts an order that already exists with the same body and rejects one
// that exists with a different body.
func (p *Process) Place(ctx context.Context, tx pgx.Tx, events []event.Event[OrderCreated]) ([]event.Outgoing, error) {
	orders, err := p.orders.Find(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	shortages, err := p.allocate(ctx, tx, orders, events)
	if err != nil {
		return nil, err
	}

	b := &batch{process: p, orders: orders, store: p.orders.Insert}

	return apply(ctx, tx, b, events, func(e event.Event[OrderCreated]) Command {
		return Place{Asked: orderOf(e.Payload.Order), Short: shortages[e.Payload.Order.ID]}
	})
}

// allocate returns the shortages of new orders by id. Of several events with the same
// id it considers only the first.
func (p *Process) allocate(ctx context.Context, tx pgx.Tx, orders map[string]order.Order, events []event.Event[OrderCreated]) (map[string]*inventory.Shortage, error) {
	var (
		ids     = make([]string, 0, len(events))
		demands = make([]inventory.Demand, 0, len(events))
		short   = make(map[string]*inventory.Shortage, len(events))
	)

	for _, e := range events {
		id := e.Payload.Order.ID
		_, exists := orders[id]
		_, repeated := short[id]

		if !exists && !repeated {
			short[id] = nil
			ids, demands = append(ids, id), append(demands, demandOf(e.Payload.Order.lines()))
		}
	}

	available, err := p.inventory.Available(ctx, tx, demands)
	if err != nil {
		return nil, err
	}

	for i, shortage := range inventory.Allocate(available, demands) {
		short[ids[i]] = shortage
	}

	return short, nil
}

// Admit admits charges for orders that are waiting for exactly this payment. An order
// that is no longer waiting may have been charged even though the answer was lost; Charge
// then only looks up the charge.
func (p *Process) Admit(ctx context.Context, db postgres.Querier, events []event.Event[PaymentRequested]) ([]error, error) {
	orders, err := p.orders.Find(ctx, db, keys(events))
	if err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))
	for i := range events {
		verdicts[i] = admitCharge(orders, &events[i].Payload)
	}

	return verdicts, nil
}

func admitCharge(orders map[string]order.Order, p *PaymentRequested) error {
	o, exists := orders[p.OrderID]
	if !exists {
		return event.Reject(fmt.Errorf("order_id: there is no order %s", p.OrderID))
	}

	if err := checkTotal(o, *p.Amount, p.Currency.Code()); err != nil {
		return event.Reject(err)
	}

	if o.Status == order.StatusInventoryUnavailable {
		return event.ErrSkip // it never waited for a payment
	}

	p.late = o.Status != order.StatusInventoryReserved

	return nil
}

// Charge charges the order's total, or looks up a charge that may exist.
func (p *Process) Charge(ctx context.Context, e event.Event[PaymentRequested]) (payment.Outcome, error) {
	if e.Payload.late {
		return p.gateway.Find(ctx, chargeOf(e.Payload))
	}

	outcome, err := p.gateway.Charge(ctx, chargeOf(e.Payload))

	crashpoint.At(crashpoint.Charged)

	return outcome, err
}

// Charged is a payment request with the gateway's outcome.
type Charged = event.Effected[PaymentRequested, payment.Outcome]

// Settle records the outcomes of charges. After a capture the order is paid. After a
// decline the order ends and its stock is released. If an order is not waiting for a
// payment, its capture is refunded.
func (p *Process) Settle(ctx context.Context, tx pgx.Tx, charged []Charged) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(charged))
	if err != nil {
		return nil, err
	}

	return apply(ctx, tx, b, charged, func(c Charged) Command {
		if c.Result == nil {
			return nil
		}

		return Settle{Outcome: *c.Result, Attempt: c.Payload.Attempt}
	})
}

// Complete completes paid orders and sells their stock. It leaves completed and
// cancelled orders as they are and rejects others.
func (p *Process) Complete(ctx context.Context, tx pgx.Tx, events []event.Event[OrderCompleted]) ([]event.Outgoing, error) {
	b, err := p.openWithoutCaptures(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	return apply(ctx, tx, b, events, func(event.Event[OrderCompleted]) Command { return Complete{} })
}

func orderOf(o NewOrder) order.Order {
	return order.Order{ID: o.ID, Total: *o.TotalAmount, Currency: o.Currency.Code(), Lines: o.lines()}
}

func chargeOf(p PaymentRequested) payment.Charge {
	return payment.Charge{OrderID: p.OrderID, Attempt: p.Attempt, Amount: *p.Amount, Currency: p.Currency.Code()}
}

func demandOf(lines []order.Line) inventory.Demand {
	demand := make(inventory.Demand, len(lines))
	for _, line := range lines {
		demand[line.ProductID] += line.Quantity
	}

	return demand
}

// message is an event with any payload.
type message interface {
	AggregateID() string
	Identity() event.Meta
}

func keys[E message](events []E) []string { return postgres.Column(events, E.AggregateID) }
