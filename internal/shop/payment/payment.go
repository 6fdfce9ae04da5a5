// Package payment charges orders through a gateway and records the outcomes.
package payment

import (
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Payment is a charge and its outcome.
type Payment struct {
	Charge
	Outcome
}

// Record queues the write that stores one payment per order. A capture replaces a declined
// payment; the first capture of an order is never replaced. The caller holds the locks on
// the orders.
func Record(writes *pgx.Batch, payments []Payment) {
	payments = onePerOrder(payments)
	if len(payments) == 0 {
		return
	}

	postgres.Queue(writes, "recording payments", `
		INSERT INTO payments (order_id, status, attempt, amount, currency, transaction_id, decline_reason)
		SELECT order_id, CASE WHEN txn <> '' THEN 'captured' ELSE 'declined' END, attempt,
		       amount, currency, NULLIF(txn, ''), CASE WHEN txn = '' THEN declined END
		FROM unnest($1::text[], $2::int[], $3::text[]::numeric[], $4::text[], $5::text[], $6::text[])
		     AS p (order_id, attempt, amount, currency, txn, declined)
		ON CONFLICT (order_id) DO UPDATE
		SET status = excluded.status, attempt = excluded.attempt, transaction_id = excluded.transaction_id,
		    decline_reason = NULL, recorded_at = excluded.recorded_at
		WHERE payments.status = 'declined' AND excluded.status = 'captured'`,
		postgres.Column(payments, func(p Payment) string { return p.OrderID }),
		postgres.Column(payments, func(p Payment) int { return p.attempt() }),
		postgres.Column(payments, func(p Payment) string { return p.Amount.String() }),
		postgres.Column(payments, func(p Payment) string { return p.Currency }),
		postgres.Column(payments, func(p Payment) string { return p.TransactionID }),
		postgres.Column(payments, func(p Payment) string { return p.Declined }))
}

// onePerOrder keeps the first capture of each order or, without a capture, its
// first payment.
func onePerOrder(payments []Payment) []Payment {
	kept := make([]Payment, 0, len(payments))
	index := make(map[string]int, len(payments))

	for _, p := range payments {
		i, known := index[p.OrderID]

		switch {
		case !known:
			index[p.OrderID] = len(kept)
			kept = append(kept, p)
		case p.Captured() && !kept[i].Captured():
			kept[i] = p
		}
	}

	return kept
}

// Refunded is a refund that the gateway has made, or that failed.
type Refunded struct {
	OrderID       string
	TransactionID string
	RefundID      string
	// Failure is the reason why the refund failed; empty if it did not.
	Failure string
}

// RecordRefunds queues the write that marks payments as refunded, or as captured again if
// the refund failed. A refund of a capture that is not the recorded one changes nothing.
func RecordRefunds(writes *pgx.Batch, refunds []Refunded) {
	refunds = lastPerCapture(refunds)
	if len(refunds) == 0 {
		return
	}

	postgres.Queue(writes, "recording refunds", `
		UPDATE payments p SET status = CASE WHEN r.failure = '' THEN 'refunded' ELSE 'captured' END,
			refund_id = CASE WHEN r.failure = '' THEN r.refund_id END, refunded_at = CASE WHEN r.failure = '' THEN now() END,
			refund_failure = CASE WHEN r.failure <> '' THEN r.refund_id || ': ' || r.failure END
		FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS r (order_id, txn, refund_id, failure)
		WHERE p.order_id = r.order_id AND p.order_id = ANY($1) AND p.transaction_id = r.txn AND p.status IN ('captured', 'refunded')`,
		postgres.Column(refunds, func(r Refunded) string { return r.OrderID }),
		postgres.Column(refunds, func(r Refunded) string { return r.TransactionID }),
		postgres.Column(refunds, func(r Refunded) string { return r.RefundID }),
		postgres.Column(refunds, func(r Refunded) string { return r.Failure }))
}

// lastPerCapture keeps the last of several changes to a capture.
func lastPerCapture(refunds []Refunded) []Refunded {
	kept := make([]Refunded, 0, len(refunds))

	for i, r := range refunds {
		if !slices.ContainsFunc(refunds[i+1:], func(later Refunded) bool {
			return later.OrderID == r.OrderID && later.TransactionID == r.TransactionID
		}) {
			kept = append(kept, r)
		}
	}

	return kept
}
