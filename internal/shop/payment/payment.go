// Package payment charges orders through a gateway and records the outcome.
package payment

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Service charges and records.
type Service struct {
	gateway Gateway
}

// NewService returns a service that charges through gateway.
func NewService(gateway Gateway) *Service { return &Service{gateway: gateway} }

// Charge asks the gateway. It may be called again for the same order.
func (s *Service) Charge(ctx context.Context, charge Charge) (Outcome, error) {
	outcome, err := s.gateway.Charge(ctx, charge)
	if err != nil {
		return outcome, fmt.Errorf("charging order %s: %w", charge.OrderID, err)
	}

	return outcome, nil
}

// Find asks the gateway what became of a charge that may have been made. The
// outcome is the zero one when it has never heard of it.
func (s *Service) Find(ctx context.Context, charge Charge) (Outcome, error) {
	outcome, found, err := s.gateway.Find(ctx, charge)

	switch {
	case err != nil:
		return Outcome{}, fmt.Errorf("looking for the charge of order %s: %w", charge.OrderID, err)
	case !found:
		return Outcome{}, nil
	default:
		return outcome, nil
	}
}

// Refund asks the gateway to give a capture back and returns its id of the
// refund. It may be called again for the same capture.
func (s *Service) Refund(ctx context.Context, refund Refund) (string, error) {
	id, err := s.gateway.Refund(ctx, refund)
	if err != nil {
		return "", fmt.Errorf("refunding order %s: %w", refund.OrderID, err)
	}

	return id, nil
}

// Payment is a charge with its outcome.
type Payment struct {
	Charge
	Outcome
}

// Record stores the outcomes: one payment per order. A capture takes the place
// of a declined payment; nothing takes that of a capture, which is the order's
// first. The caller has the orders locked.
func (s *Service) Record(ctx context.Context, tx pgx.Tx, payments []Payment) error {
	payments = effective(payments)
	if len(payments) == 0 {
		return nil
	}

	var (
		orders       = make([]string, len(payments))
		attempts     = make([]int32, len(payments))
		amounts      = make([]string, len(payments))
		currencies   = make([]string, len(payments))
		transactions = make([]string, len(payments))
		declined     = make([]string, len(payments))
	)

	for i, p := range payments {
		orders[i], attempts[i], amounts[i], currencies[i] = p.OrderID, int32(max(p.Attempt, 1)), p.Amount.String(), p.Currency //nolint:gosec // a few
		transactions[i], declined[i] = p.TransactionID, p.Declined
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO payments (order_id, status, attempt, amount, currency, transaction_id, decline_reason)
		SELECT order_id, CASE WHEN txn <> '' THEN 'captured' ELSE 'declined' END, attempt,
		       amount, currency, NULLIF(txn, ''), CASE WHEN txn = '' THEN declined END
		FROM unnest($1::text[], $2::int[], $3::text[]::numeric[], $4::text[], $5::text[], $6::text[])
		     AS p (order_id, attempt, amount, currency, txn, declined)
		ON CONFLICT (order_id) DO UPDATE
		SET status = excluded.status, attempt = excluded.attempt, transaction_id = excluded.transaction_id,
		    decline_reason = NULL, recorded_at = excluded.recorded_at
		WHERE payments.status = 'declined' AND excluded.status = 'captured'`,
		orders, attempts, amounts, currencies, transactions, declined)
	if err != nil {
		return fmt.Errorf("recording payments: %w", err)
	}

	return nil
}

// effective returns one payment per order: the first capture, or the first of all.
func effective(payments []Payment) []Payment {
	kept := make([]Payment, 0, len(payments))
	place := make(map[string]int, len(payments))

	for _, p := range payments {
		at, known := place[p.OrderID]

		switch {
		case !known:
			place[p.OrderID] = len(kept)
			kept = append(kept, p)
		case p.Captured() && !kept[at].Captured():
			kept[at] = p
		}
	}

	return kept
}

// Refunded is a refund that the gateway has made.
type Refunded struct {
	OrderID       string
	TransactionID string
	RefundID      string
}

// RecordRefunds stores refunds with the payments that they give back. A refund
// of another capture than the recorded one leaves the payment as it is.
func (s *Service) RecordRefunds(ctx context.Context, tx pgx.Tx, refunds []Refunded) error {
	if len(refunds) == 0 {
		return nil
	}

	var (
		orders       = make([]string, len(refunds))
		transactions = make([]string, len(refunds))
		ids          = make([]string, len(refunds))
	)

	for i, r := range refunds {
		orders[i], transactions[i], ids[i] = r.OrderID, r.TransactionID, r.RefundID
	}

	_, err := tx.Exec(ctx, `
		UPDATE payments p SET status = 'refunded', refund_id = r.refund_id, refunded_at = now()
		FROM unnest($1::text[], $2::text[], $3::text[]) AS r (order_id, txn, refund_id)
		WHERE p.order_id = r.order_id AND p.transaction_id = r.txn AND p.status = 'captured'`, orders, transactions, ids)
	if err != nil {
		return fmt.Errorf("recording refunds: %w", err)
	}

	return nil
}
