package fulfilment

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// The other ways in which an order ends: cancelled or expired, and money that
// has to go back. Before an order ends that may have been charged, the gateway
// is asked.

// AdmitCancel lets the gateway be asked about orders that wait for their
// payment. The request may have overtaken its order: that is an error which
// trying again cures.
func (p *Process) AdmitCancel(ctx context.Context, db postgres.Querier, events []event.Event[CancelRequested]) ([]error, error) {
	return ask(ctx, p, db, events, early, func(p *CancelRequested, charge payment.Charge) { p.charge = charge })
}

// FindForCancel asks the gateway what it knows of a charge.
func (p *Process) FindForCancel(ctx context.Context, e event.Event[CancelRequested]) (payment.Outcome, error) {
	return p.payments.Find(ctx, e.Payload.charge)
}

// Cancel calls orders off: stock is released and a capture refunded. What has
// ended otherwise stays as it is, and the request is refused.
func (p *Process) Cancel(ctx context.Context, tx pgx.Tx, events []event.Effected[CancelRequested, payment.Outcome]) ([]event.Outgoing, error) {
	return end(ctx, p, tx, events, func(p CancelRequested, found payment.Outcome) Command {
		return Cancel{Reason: p.Reason, Found: found}
	})
}

// AdmitExpiry lets the gateway be asked about orders that wait for their
// payment.
func (p *Process) AdmitExpiry(ctx context.Context, db postgres.Querier, events []event.Event[ExpiryDue]) ([]error, error) {
	refuse := func(err error) error { return event.Reject(fmt.Errorf("order_id: %w", err)) }

	return ask(ctx, p, db, events, refuse, func(p *ExpiryDue, charge payment.Charge) { p.charge = charge })
}

// FindForExpiry asks the gateway what it knows of a charge.
func (p *Process) FindForExpiry(ctx context.Context, e event.Event[ExpiryDue]) (payment.Outcome, error) {
	return p.payments.Find(ctx, e.Payload.charge)
}

// Expire ends orders that are still not paid. One that was charged, with the
// answer lost, goes on.
func (p *Process) Expire(ctx context.Context, tx pgx.Tx, events []event.Effected[ExpiryDue, payment.Outcome]) ([]event.Outgoing, error) {
	return end(ctx, p, tx, events, func(_ ExpiryDue, found payment.Outcome) Command { return Expire{Found: found} })
}

// ask looks which orders wait for their payment and hands their charges to
// set. missing makes the verdict on an order that is not there.
func ask[P event.Payload](ctx context.Context, p *Process, db postgres.Querier, events []event.Event[P],
	missing func(error) error, set func(*P, payment.Charge),
) ([]error, error) {
	known, err := p.orders.Find(ctx, db, keys(events))
	if err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))

	for i := range events {
		id := events[i].AggregateID()

		switch o, exists := known[id]; {
		case !exists:
			verdicts[i] = missing(order.NotFound(id))
		case o.Status == order.StatusInventoryReserved:
			set(&events[i].Payload, payment.Charge{OrderID: id, Amount: o.Total, Currency: o.Currency})
		default:
			verdicts[i] = event.ErrSkip
		}
	}

	return verdicts, nil
}

// errNotAsked cannot be: no order comes back to waiting for its payment.
var errNotAsked = errors.New("the order waits for its payment and the gateway was not asked")

// end decides on orders with what the gateway knew. It was not asked about
// those that did not wait for their payment.
func end[P event.Payload](ctx context.Context, p *Process, tx pgx.Tx, events []event.Effected[P, payment.Outcome],
	command func(p P, found payment.Outcome) Command,
) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	for _, e := range events {
		if e.Result == nil && b.orders[e.AggregateID()].Status == order.StatusInventoryReserved {
			return nil, errNotAsked
		}
	}

	err = decide(b, events, func(e event.Effected[P, payment.Outcome]) Command {
		if e.Result == nil {
			return command(e.Payload, payment.Outcome{})
		}

		return command(e.Payload, *e.Result)
	})
	if err != nil {
		return nil, err
	}

	return b.save(ctx, tx, p.orders.Update)
}

// AdmitRefund lets refunds of captures go ahead for which there is an order no
// more. A capture that was given back needs nothing.
func (p *Process) AdmitRefund(ctx context.Context, db postgres.Querier, events []event.Event[RefundRequested]) ([]error, error) {
	known, err := p.orders.Find(ctx, db, keys(events))
	if err != nil {
		return nil, err
	}

	ids := make([]string, 0, len(known))
	for id := range known {
		ids = append(ids, id)
	}

	if err := p.orders.Recall(ctx, db, known, ids); err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))
	for i, e := range events {
		verdicts[i] = admitRefund(known, e.Payload)
	}

	return verdicts, nil
}

func admitRefund(known map[string]order.Order, p RefundRequested) error {
	o, exists := known[p.OrderID]
	capture, captured := o.Capture(p.TransactionID)

	switch {
	case !exists:
		return event.Reject(fmt.Errorf("order_id: there is no order %s", p.OrderID))
	case !captured:
		return event.Reject(fmt.Errorf("transaction_id: is %s, expected a capture of order %s", p.TransactionID, p.OrderID))
	case !p.Amount.Equal(o.Total) || p.Currency != o.Currency:
		return event.Reject(fmt.Errorf("amount: is %s %s, expected the order's total %s %s", p.Amount, p.Currency, o.Total, o.Currency))
	case capture.RefundID != "":
		return event.ErrSkip
	case !capture.Late && o.Status != order.StatusCancelled:
		return event.Reject(fmt.Errorf("order_id: %s is %s, expected a cancelled order or a capture that came late", p.OrderID, o.Status))
	}

	return nil
}

// Refund asks the gateway to give a capture back. What it refuses for good is
// a rejection, with its words.
func (p *Process) Refund(ctx context.Context, e event.Event[RefundRequested]) (string, error) {
	id, err := p.payments.Refund(ctx, payment.Refund{
		OrderID: e.Payload.OrderID, TransactionID: e.Payload.TransactionID, Amount: *e.Payload.Amount, Currency: e.Payload.Currency,
	})

	if _, refused := errors.AsType[*payment.RefusedError](err); refused {
		return "", event.Reject(err)
	}

	return id, err
}

// RecordRefund records the refunds with their orders.
func (p *Process) RecordRefund(ctx context.Context, tx pgx.Tx, events []event.Effected[RefundRequested, string]) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	err = decide(b, events, func(e event.Effected[RefundRequested, string]) Command {
		if e.Result == nil {
			return nil
		}

		return Refunded{TransactionID: e.Payload.TransactionID, RefundID: *e.Result}
	})
	if err != nil {
		return nil, err
	}

	return b.save(ctx, tx, p.orders.Update)
}

// Report takes in what a provider tells by itself, as if it were the answer to
// a charge or a refund. It may have overtaken the order.
func (p *Process) Report(ctx context.Context, tx pgx.Tx, events []event.Event[payment.Reported]) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	if err := decide(b, events, reported); err != nil {
		return nil, err
	}

	return b.save(ctx, tx, p.orders.Update)
}

func reported(e event.Event[payment.Reported]) Command {
	p := e.Payload
	amount := &Money{Amount: *p.Amount, Currency: p.Currency}

	switch p.Outcome {
	case payment.ReportRefunded:
		return Refunded{TransactionID: event.Text(p.TransactionID), RefundID: event.Text(p.RefundID), Money: amount}
	case payment.ReportDeclined:
		return Settle{Outcome: payment.Outcome{Declined: event.Text(p.Reason)}, Attempt: p.Attempt}
	default:
		return Settle{Outcome: payment.Outcome{TransactionID: event.Text(p.TransactionID)}, Attempt: p.Attempt, Money: amount}
	}
}
