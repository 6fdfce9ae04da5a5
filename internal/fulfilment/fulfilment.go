// Package fulfilment is the order process: the one place where orders, stock
// and payments meet. Each step takes a batch of events and the transaction,
// and returns the events that follow.
package fulfilment

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/inventory"
	"github.com/millrace/millrace/internal/order"
	"github.com/millrace/millrace/internal/payment"
	"github.com/millrace/millrace/internal/postgres"
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
	fresh, err := p.unknown(ctx, tx, events)
	if err != nil {
		return nil, err
	}

	demands := make([]inventory.Demand, len(fresh))
	for i, e := range fresh {
		demands[i] = demandOf(e.Payload.Order.lines())
	}

	shortages, err := p.inventory.Reserve(ctx, tx, demands)
	if err != nil {
		return nil, err
	}

	changes := make([]order.Change, len(fresh))
	outgoing := make([]event.Outgoing, len(fresh))

	for i, e := range fresh {
		if changes[i], outgoing[i], err = place(e, shortages[i]); err != nil {
			return nil, err
		}
	}

	return outgoing, p.orders.Insert(ctx, tx, changes)
}

// unknown returns the events whose order does not exist, the first of each.
func (p *Process) unknown(ctx context.Context, tx pgx.Tx, events []event.Event[OrderCreated]) ([]event.Event[OrderCreated], error) {
	known, err := p.orders.Find(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	fresh := make([]event.Event[OrderCreated], 0, len(events))
	rejected := event.RejectSome{}

	for i, e := range events {
		asked := orderOf(e.Payload.Order)

		switch existing, exists := known[asked.ID]; {
		case !exists:
			known[asked.ID] = asked
			fresh = append(fresh, e)
		case !existing.Same(asked):
			rejected[i] = event.RejectAs(event.ReasonConflict,
				fmt.Errorf("order.id: %s exists with another body, expected a new id or the same order", asked.ID))
		}
	}

	return fresh, rejected.Err()
}

// place decides what becomes of a new order.
func place(e event.Event[OrderCreated], short *inventory.Shortage) (order.Change, event.Outgoing, error) {
	asked := orderOf(e.Payload.Order)
	created := order.Created{Total: asked.Total, Currency: asked.Currency, Lines: asked.Lines}

	if short != nil {
		change, err := order.Evolve(order.Order{ID: asked.ID}, e.ID, created, order.InventoryUnavailable{
			ProductID: short.ProductID, Requested: short.Requested, Available: short.Available,
		})

		return change, e.Then(OrderRejected{
			OrderID: asked.ID,
			Reason:  order.StatusInventoryUnavailable,
			Detail:  fmt.Sprintf("%d of %s wanted, %d available", short.Requested, short.ProductID, short.Available),
		}), err
	}

	change, err := order.Evolve(order.Order{ID: asked.ID}, e.ID, created, order.InventoryReserved{})
	total := asked.Total

	return change, e.Then(PaymentRequested{OrderID: asked.ID, Amount: &total, Currency: asked.Currency}), err
}

// Admit lets a charge go ahead when the order waits for exactly this payment.
// An order that is past that needs nothing.
func (p *Process) Admit(ctx context.Context, db postgres.Querier, events []event.Event[PaymentRequested]) ([]error, error) {
	known, err := p.orders.Find(ctx, db, keys(events))
	if err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))
	for i, e := range events {
		verdicts[i] = admit(known, e.Payload)
	}

	return verdicts, nil
}

func admit(known map[string]order.Order, p PaymentRequested) error {
	o, exists := known[p.OrderID]

	switch {
	case !exists:
		return event.Reject(fmt.Errorf("order_id: there is no order %s", p.OrderID))
	case !o.Total.Equal(*p.Amount):
		return event.Reject(fmt.Errorf("amount: is %s, expected the order's total %s", p.Amount, o.Total))
	case o.Currency != p.currency():
		return event.Reject(fmt.Errorf("currency: is %s, expected the order's %s", p.currency(), o.Currency))
	case o.Status != order.StatusInventoryReserved:
		return event.ErrSkip // paid, refused or over: nothing to charge
	}

	return nil
}

// Charge asks the gateway for the order's total.
func (p *Process) Charge(ctx context.Context, e event.Event[PaymentRequested]) (payment.Outcome, error) {
	return p.payments.Charge(ctx, chargeOf(e.Payload))
}

// Charged is a payment request with the gateway's outcome.
type Charged = event.Effected[PaymentRequested, payment.Outcome]

// Settle records the outcomes: a captured order is paid, a declined one ends
// and gives its stock back.
func (p *Process) Settle(ctx context.Context, tx pgx.Tx, charged []Charged) ([]event.Outgoing, error) {
	orders, err := p.orders.Lock(ctx, tx, keys(charged))
	if err != nil {
		return nil, err
	}

	var (
		changes  []order.Change
		payments []payment.Payment
		released []inventory.Demand
		outgoing []event.Outgoing
	)

	for _, c := range charged {
		o := orders[c.Payload.OrderID]
		if c.Result == nil || o.Status != order.StatusInventoryReserved {
			continue // settled by another message; the gateway's key made it one charge
		}

		change, next, err := settle(o, c)
		if err != nil {
			return nil, err
		}

		orders[o.ID] = change.Order
		changes, outgoing = append(changes, change), append(outgoing, next)
		payments = append(payments, payment.Payment{Charge: chargeOf(c.Payload), Outcome: *c.Result})

		if !c.Result.Captured() {
			released = append(released, demandOf(o.Lines))
		}
	}

	if err := p.orders.Update(ctx, tx, changes); err != nil {
		return nil, err
	}

	if err := p.payments.Record(ctx, tx, payments); err != nil {
		return nil, err
	}

	return outgoing, p.inventory.Release(ctx, tx, released)
}

// settle decides what becomes of an order that was charged.
func settle(o order.Order, c Charged) (order.Change, event.Outgoing, error) {
	if c.Result.Captured() {
		change, err := order.Evolve(o, c.ID, order.Paid{TransactionID: c.Result.TransactionID})

		return change, c.Then(OrderCompleted{OrderID: o.ID}), err
	}

	change, err := order.Evolve(o, c.ID, order.PaymentFailed{Reason: c.Result.Declined})

	return change, c.Then(OrderRejected{
		OrderID: o.ID, Reason: order.StatusPaymentFailed, Detail: c.Result.Declined,
	}), err
}

// Complete ends paid orders: their stock is sold. A completed order stays as
// it is; one that is not paid cannot be completed.
func (p *Process) Complete(ctx context.Context, tx pgx.Tx, events []event.Event[OrderCompleted]) ([]event.Outgoing, error) {
	orders, err := p.orders.Lock(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	var (
		changes  []order.Change
		sold     []inventory.Demand
		rejected = event.RejectSome{}
	)

	for i, e := range events {
		o, exists := orders[e.Payload.OrderID]

		switch {
		case !exists:
			rejected[i] = event.Reject(fmt.Errorf("order_id: there is no order %s", e.Payload.OrderID))

			continue
		case o.Status == order.StatusCompleted:
			continue
		}

		change, err := order.Evolve(o, e.ID, order.Completed{})
		if err != nil {
			rejected[i] = event.Reject(fmt.Errorf("order_id: %w", err))

			continue
		}

		orders[o.ID] = change.Order
		changes, sold = append(changes, change), append(sold, demandOf(o.Lines))
	}

	if err := rejected.Err(); err != nil {
		return nil, err
	}

	if err := p.orders.Update(ctx, tx, changes); err != nil {
		return nil, err
	}

	return nil, p.inventory.Sell(ctx, tx, sold)
}

func orderOf(o NewOrder) order.Order {
	return order.Order{ID: o.ID, Total: *o.TotalAmount, Currency: o.currency(), Lines: o.lines()}
}

func chargeOf(p PaymentRequested) payment.Charge {
	return payment.Charge{OrderID: p.OrderID, Amount: *p.Amount, Currency: p.currency()}
}

func demandOf(lines []order.Line) inventory.Demand {
	demand := make(inventory.Demand, len(lines))
	for _, line := range lines {
		demand[line.ProductID] += line.Quantity
	}

	return demand
}

// keyed is an event of any payload.
type keyed interface{ AggregateID() string }

func keys[E keyed](events []E) []string {
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.AggregateID()
	}

	return ids
}
