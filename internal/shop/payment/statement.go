package payment

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/money"
)

// Statement compares the payments of an order in Millrace and at the gateway.
type Statement struct {
	OrderID string `json:"order_id"`
	// Recorded is what Millrace has recorded.
	Recorded []Recorded `json:"recorded"`
	// Ledger is what the gateway has captured.
	Ledger []Entry `json:"ledger"`
	// Differences is empty when both agree.
	Differences []string `json:"differences"`
}

// Recorded is a payment as Millrace has recorded it.
type Recorded struct {
	Attempt       int          `json:"attempt"`
	Status        string       `json:"status"`
	Amount        money.Amount `json:"amount"`
	Currency      string       `json:"currency"`
	TransactionID string       `json:"transaction_id,omitempty"`
	DeclineReason string       `json:"decline_reason,omitempty"`
	RefundID      string       `json:"refund_id,omitempty"`
	// RefundFailure is the reason why the last refund failed.
	RefundFailure string    `json:"refund_failure,omitempty"`
	RecordedAt    time.Time `json:"recorded_at"`
}

// State compares what Millrace and the gateway know about an order. The two
// are read one after the other, so an order that is being charged may differ
// for a moment. It returns a NotFound error if neither knows the order.
func State(ctx context.Context, db postgres.Querier, gateway Gateway, orderID string) (Statement, error) {
	s := Statement{OrderID: orderID, Ledger: []Entry{}, Differences: []string{}}

	var err error

	s.Recorded, err = postgres.Collect(ctx, db, pgx.RowToStructByPos[Recorded], `
		SELECT attempt, status, amount::text, currency, COALESCE(transaction_id, ''), COALESCE(decline_reason, ''),
		       COALESCE(refund_id, ''), COALESCE(refund_failure, ''), recorded_at
		FROM payments WHERE order_id = $1 ORDER BY attempt`, orderID)
	if err != nil {
		return s, fmt.Errorf("reading payments: %w", err)
	}

	entries, err := gateway.Entries(ctx, orderID)
	if err != nil {
		return s, fmt.Errorf("reading the gateway's record of order %s: %w", orderID, err)
	}

	if len(entries)+len(s.Recorded) == 0 {
		return s, event.Missing("payment of order", orderID)
	}

	s.Ledger = append(s.Ledger, entries...)
	s.Differences = append(s.Differences, differences(s.Recorded, entries)...)

	return s, nil
}

// differences compares both sides capture by capture.
func differences(recorded []Recorded, ledger []Entry) []string {
	var found []string

	unrecorded := make(map[string]Entry, len(ledger))
	for _, e := range ledger {
		unrecorded[e.TransactionID] = e
	}

	for _, r := range recorded {
		if r.TransactionID == "" {
			continue
		}

		e, captured := unrecorded[r.TransactionID]
		delete(unrecorded, r.TransactionID)

		switch {
		case !captured:
			found = append(found, fmt.Sprintf("%s is recorded as %s, but the gateway has not captured it", r.TransactionID, r.Status))
		case !r.Amount.Equal(e.Amount) || r.Currency != e.Currency:
			found = append(found, fmt.Sprintf("%s is recorded with %s %s, but the gateway has captured %s %s", r.TransactionID, r.Amount, r.Currency, e.Amount, e.Currency))
		case r.RefundID == "" && e.Refunded.IsPositive():
			found = append(found, fmt.Sprintf("the gateway has refunded %s %s of %s, or is about to, but no refund is recorded", e.Refunded, e.Currency, r.TransactionID))
		case r.RefundID != "" && !e.Refunded.Equal(e.Amount):
			found = append(found, fmt.Sprintf("%s is recorded as refunded, but the gateway has refunded %s of %s %s", r.TransactionID, e.Refunded, e.Amount, e.Currency))
		}
	}

	for _, e := range ledger {
		if _, missing := unrecorded[e.TransactionID]; missing && !e.Refunded.Equal(e.Amount) {
			found = append(found, fmt.Sprintf("the gateway has captured %s, which is not recorded: %s %s", e.TransactionID, e.Amount, e.Currency))
		}
	}

	return found
}
