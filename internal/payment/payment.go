// Package payment charges orders through a gateway and records the outcome.
package payment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Simulated is a gateway for development and tests: it captures every amount
// above zero, without calling anyone.
type Simulated struct{}

// NewSimulated returns the simulated gateway.
func NewSimulated() Simulated { return Simulated{} }

// Charge answers at once. The transaction id depends on the idempotency key alone.
func (Simulated) Charge(_ context.Context, charge Charge) (Outcome, error) {
	if !charge.Amount.IsPositive() {
		return Outcome{Declined: "amount must be above zero"}, nil
	}

	sum := sha256.Sum256([]byte(charge.IdempotencyKey()))

	return Outcome{TransactionID: "txn_" + hex.EncodeToString(sum[:8])}, nil
}

// Find implements Gateway.
func (s Simulated) Find(ctx context.Context, charge Charge) (Outcome, bool, error) {
	outcome, err := s.Charge(ctx, charge)

	return outcome, true, err
}

// Refund implements Gateway.
func (Simulated) Refund(_ context.Context, refund Refund) (string, error) {
	return "ref_" + refund.TransactionID, nil
}

// Ledger implements Gateway: it keeps no record.
func (Simulated) Ledger(context.Context, time.Time, func(Entry) error) error { return nil }

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

// Payment is a charge with its outcome.
type Payment struct {
	Charge
	Outcome
}

// Record stores the outcomes: one payment per order.
func (s *Service) Record(ctx context.Context, tx pgx.Tx, payments []Payment) error {
	if len(payments) == 0 {
		return nil
	}

	var (
		orders       = make([]string, len(payments))
		amounts      = make([]string, len(payments))
		currencies   = make([]string, len(payments))
		transactions = make([]string, len(payments))
		declined     = make([]string, len(payments))
	)

	for i, p := range payments {
		orders[i], amounts[i], currencies[i] = p.OrderID, p.Amount.String(), p.Currency
		transactions[i], declined[i] = p.TransactionID, p.Declined
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO payments (order_id, status, amount, currency, transaction_id, decline_reason)
		SELECT order_id, CASE WHEN txn <> '' THEN 'captured' ELSE 'declined' END,
		       amount, currency, NULLIF(txn, ''), NULLIF(declined, '')
		FROM unnest($1::text[], $2::text[]::numeric[], $3::text[], $4::text[], $5::text[])
		     AS p (order_id, amount, currency, txn, declined)`,
		orders, amounts, currencies, transactions, declined)
	if err != nil {
		return fmt.Errorf("recording payments: %w", err)
	}

	return nil
}
