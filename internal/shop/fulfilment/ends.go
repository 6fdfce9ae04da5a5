package fulfilment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// This file handles orders that end without a sale: they are cancelled, expire,
// or have their money refunded. Before an order that may have been charged ends,
// the gateway is asked about the charge.

// AdmitCancel asks the gateway about orders that are waiting for payment. A request
// that overtakes its order awaits the order.
func (p *Process) AdmitCancel(ctx context.Context, db postgres.Querier, events []event.Event[CancelRequested]) ([]error, error) {
	return admitUnpaid(ctx, p, db, events, notYetCreated, func(p *CancelRequested, charge payment.Charge) { p.charge = charge })
}

// FindForCancel returns what the gateway knows about the order's charge. A charge may be
// pending for days. That does not delay the cancellation: if the charge is captured
// later, the capture is refunded.
func (p *Process) FindForCancel(ctx context.Context, e event.Event[CancelRequested]) (payment.Outcome, error) {
	found, err := p.gateway.Find(ctx, e.Payload.charge)

	crashpoint.At(crashpoint.CancelFound)

	if errors.Is(err, payment.ErrPending) {
		return payment.Outcome{}, nil
	}

	return found, err
}

// Cancel cancels orders: it releases their stock and refunds their captures. It
// refuses to cancel an order that has already ended.
func (p *Process) Cancel(ctx context.Context, tx pgx.Tx, events []event.Effected[CancelRequested, payment.Outcome]) ([]event.Outgoing, error) {
	outgoing, err := endUnpaid(ctx, p, tx, events, func(p CancelRequested, found payment.Outcome) Command {
		return Cancel{Reason: p.Reason, Found: found}
	})

	crashpoint.At(crashpoint.CancelDecided)

	return outgoing, err
}

// AdmitExpiry asks the gateway about orders that are waiting for payment. It does not
// ask about orders whose payment request has not been processed; Expire gives these
// the full payment timeout again.
func (p *Process) AdmitExpiry(ctx context.Context, db postgres.Querier, events []event.Event[ExpiryDue]) ([]error, error) {
	reject := func(err error) error { return event.Reject(fmt.Errorf("order_id: %w", err)) }

	verdicts, err := admitUnpaid(ctx, p, db, events, reject, func(p *ExpiryDue, charge payment.Charge) { p.charge = charge })
	if err != nil {
		return nil, err
	}

	var unpaid []string

	for i, e := range events {
		if verdicts[i] == nil {
			unpaid = append(unpaid, e.Payload.OrderID)
		}
	}

	if len(unpaid) == 0 {
		return verdicts, nil
	}

	unserved, err := p.undelivered(ctx, TopicPaymentRequested, unpaid)
	if err != nil {
		return nil, err
	}

	for i := range events {
		if payload := &events[i].Payload; verdicts[i] == nil && slices.Contains(unserved, payload.OrderID) {
			payload.unserved, verdicts[i] = true, event.ErrSkip
		}
	}

	return verdicts, nil
}

// FindForExpiry returns what the gateway knows about the order's charge. An order does
// not expire while its charge is pending.
func (p *Process) FindForExpiry(ctx context.Context, e event.Event[ExpiryDue]) (payment.Outcome, error) {
	found, err := p.gateway.Find(ctx, e.Payload.charge)

	crashpoint.At(crashpoint.ExpiryFound)

	return found, err
}

// Expire ends orders that are still unpaid. If an order was charged but the answer was
// lost, the order is paid instead. If its payment request has not been processed,
// because the request is waiting or stopped, it gets the full payment timeout again.
func (p *Process) Expire(ctx context.Context, tx pgx.Tx, events []event.Effected[ExpiryDue, payment.Outcome]) ([]event.Outgoing, error) {
	outgoing, err := endUnpaid(ctx, p, tx, events, func(e ExpiryDue, found payment.Outcome) Command {
		if e.unserved {
			return nil
		}

		return Expire{Found: found}
	})
	if err != nil {
		return nil, err
	}

	for _, e := range events {
		if e.Payload.unserved && p.cfg.PaymentTimeout > 0 {
			again := e.Then(ExpiryDue{OrderID: e.Payload.OrderID})
			again.Delay = p.cfg.PaymentTimeout
			outgoing = append(outgoing, again)
		}
	}

	crashpoint.At(crashpoint.ExpiryDecided)

	return outgoing, nil
}

// admitUnpaid admits events about orders that are waiting for payment and passes
// the charge to look up to setCharge. It skips events about other orders;
// notFound decides about orders that do not exist.
func admitUnpaid[P event.Payload](ctx context.Context, p *Process, db postgres.Querier, events []event.Event[P],
	notFound func(error) error, setCharge func(*P, payment.Charge),
) ([]error, error) {
	orders, err := p.orders.Find(ctx, db, keys(events))
	if err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))

	for i := range events {
		id := events[i].AggregateID()

		switch o, exists := orders[id]; {
		case !exists:
			verdicts[i] = notFound(order.NotFound(id))
		case o.Status == order.StatusInventoryReserved:
			setCharge(&events[i].Payload, payment.Charge{OrderID: id, Amount: o.Total, Currency: o.Currency})
		default:
			verdicts[i] = event.ErrSkip
		}
	}

	return verdicts, nil
}

// errNotAsked reports a bug: no order returns to waiting for payment.
var errNotAsked = errors.New("the order is waiting for payment, but the gateway was not asked about the charge")

// endUnpaid applies commands with the gateway's answers. The gateway was not
// asked about orders that were not waiting for payment. If command returns nil,
// there is nothing to decide.
func endUnpaid[P event.Payload](ctx context.Context, p *Process, tx pgx.Tx, events []event.Effected[P, payment.Outcome],
	command func(p P, found payment.Outcome) Command,
) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	for _, e := range events {
		waits := b.orders[e.AggregateID()].Status == order.StatusInventoryReserved
		if e.Result == nil && waits && command(e.Payload, payment.Outcome{}) != nil {
			return nil, errNotAsked
		}
	}

	return apply(ctx, tx, b, events, func(e event.Effected[P, payment.Outcome]) Command {
		if e.Result == nil {
			return command(e.Payload, payment.Outcome{})
		}

		return command(e.Payload, *e.Result)
	})
}

// AdmitRefund admits refunds of captures that no live order needs. It skips
// captures that are already refunded.
func (p *Process) AdmitRefund(ctx context.Context, db postgres.Querier, events []event.Event[RefundRequested]) ([]error, error) {
	orders, err := p.orders.Find(ctx, db, keys(events))
	if err != nil {
		return nil, err
	}

	if err := p.orders.Recall(ctx, db, orders, slices.Collect(maps.Keys(orders))); err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))
	for i, e := range events {
		verdicts[i] = admitRefund(orders, e.Payload)
	}

	return verdicts, nil
}

func admitRefund(orders map[string]order.Order, p RefundRequested) error {
	o, exists := orders[p.OrderID]
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
	case !o.Owes(capture):
		return event.Reject(fmt.Errorf("order_id: %s is %s, expected a cancelled order or a late capture", p.OrderID, o.Status))
	}

	return nil
}

// Refund asks the gateway to refund a capture. A final refusal by the gateway
// is a rejection with the gateway's reason.
func (p *Process) Refund(ctx context.Context, e event.Event[RefundRequested]) (string, error) {
	id, err := p.gateway.Refund(ctx, payment.Refund{
		OrderID: e.Payload.OrderID, TransactionID: e.Payload.TransactionID, Amount: *e.Payload.Amount, Currency: e.Payload.Currency,
		FailedID: e.Payload.FailedRefundID,
	})

	crashpoint.At(crashpoint.RefundSent)

	if _, refused := errors.AsType[*payment.RefusedError](err); refused {
		return "", event.Reject(err)
	}

	return id, err
}

// RecordRefund records refunds with their orders.
func (p *Process) RecordRefund(ctx context.Context, tx pgx.Tx, events []event.Effected[RefundRequested, string]) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	outgoing, err := apply(ctx, tx, b, events, func(e event.Effected[RefundRequested, string]) Command {
		if e.Result == nil {
			return nil
		}

		return Refunded{TransactionID: e.Payload.TransactionID, RefundID: *e.Result}
	})

	crashpoint.At(crashpoint.RefundDecided)

	return outgoing, err
}

// Report applies what a payment provider reports by webhook, as if it were the
// answer to a charge or a refund. The report may overtake the order.
func (p *Process) Report(ctx context.Context, tx pgx.Tx, events []event.Event[payment.Reported]) ([]event.Outgoing, error) {
	b, err := p.open(ctx, tx, keys(events))
	if err != nil {
		return nil, err
	}

	return apply(ctx, tx, b, events, commandOf)
}

// commandOf translates a provider's report.
func commandOf(e event.Event[payment.Reported]) Command {
	p := e.Payload
	amount := &Money{Amount: *p.Amount, Currency: p.Currency}

	switch p.Outcome {
	case payment.ReportRefunded:
		return Refunded{TransactionID: p.TransactionID, RefundID: p.RefundID, Money: amount}
	case payment.ReportRefundFailed:
		return FailRefund{TransactionID: p.TransactionID, RefundID: p.RefundID, Reason: p.Reason}
	case payment.ReportDisputed:
		return Dispute{TransactionID: p.TransactionID, Reason: p.Reason}
	case payment.ReportDeclined:
		return Settle{Outcome: payment.Outcome{Declined: p.Reason}, Attempt: p.Attempt}
	default:
		return Settle{Outcome: payment.Outcome{TransactionID: p.TransactionID}, Attempt: p.Attempt, Money: amount}
	}
}
