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
