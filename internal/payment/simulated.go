package payment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"
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
