// Package payment charges orders through a gateway and records the outcome.
package payment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/internal/money"
)

// Charge is a request to capture an amount.
type Charge struct {
	OrderID  string
	Amount   money.Amount
	Currency string
}

// IdempotencyKey is the same for every attempt to charge the same order, so
// that a gateway charges once however often it is asked.
func (c Charge) IdempotencyKey() string { return "millrace-charge-" + c.OrderID }

// Outcome is the gateway's answer.
type Outcome struct {
	// TransactionID is the gateway's id of the capture, empty when declined.
	TransactionID string
	// Declined is why nothing was captured, empty otherwise.
	Declined string
}

// Captured reports whether the money was taken.
func (o Outcome) Captured() bool { return o.TransactionID != "" }

// Gateway takes money. It is an interface because payment providers differ;
// an implementation must capture at most once per idempotency key. An error
// means that the outcome is not known, and the charge is asked for again.
type Gateway interface {
	Charge(ctx context.Context, charge Charge) (Outcome, error)
}

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
