package payment

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shopspring/decimal"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/money"
)

// Statement is what both sides say about the payment of an order.
type Statement struct {
	OrderID string `json:"order_id"`
	// Recorded is what Millrace has written down.
	Recorded []Recorded `json:"recorded"`
	// Ledger is what the gateway has captured.
	Ledger []Entry `json:"ledger"`
	// Differences is empty when both agree.
	Differences []string `json:"differences"`
}

// Recorded is the outcome of a charge as Millrace has it.
type Recorded struct {
	Attempt       int          `json:"attempt"`
	Status        string       `json:"status"`
	Amount        money.Amount `json:"amount"`
	Currency      string       `json:"currency"`
	TransactionID string       `json:"transaction_id,omitempty"`
	DeclineReason string       `json:"decline_reason,omitempty"`
	RefundID      string       `json:"refund_id,omitempty"`
	RecordedAt    time.Time    `json:"recorded_at"`
}

// State puts what Millrace and the gateway know about an order side by side.
// They are read one after the other: an order that is being charged may differ
// for a moment. It returns a NotFound error if neither side knows
// of a payment.
func State(ctx context.Context, db postgres.Querier, gateway Gateway, orderID string) (Statement, error) {
	s := Statement{OrderID: orderID, Ledger: []Entry{}, Differences: []string{}}

	rows, err := db.Query(ctx, `
		SELECT attempt, status, amount::text, currency, COALESCE(transaction_id, ''), COALESCE(decline_reason, ''),
		       COALESCE(refund_id, ''), recorded_at
		FROM payments WHERE order_id = $1 ORDER BY attempt`, orderID)
	if err != nil {
		return s, fmt.Errorf("reading payments: %w", err)
	}

	s.Recorded, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Recorded, err error) {
		var amount decimal.Decimal

		err = row.Scan(&r.Attempt, &r.Status, &amount, &r.Currency, &r.TransactionID, &r.DeclineReason, &r.RefundID, &r.RecordedAt)
		r.Amount = money.Amount{Decimal: amount}

		return r, err
	})
	if err != nil {
		return s, fmt.Errorf("reading payments: %w", err)
	}

	entries, err := entriesOf(ctx, gateway, orderID)
	if err != nil {
		return s, fmt.Errorf("asking the gateway about order %s: %w", orderID, err)
	}

	if len(entries)+len(s.Recorded) == 0 {
		return s, event.Missing("payment of order", orderID)
	}

	s.Ledger = append(s.Ledger, entries...)
	s.Differences = append(s.Differences, differences(s.Recorded, entries)...)

	return s, nil
}

// finder is what the gateways have beyond Gateway, which the process needs not.
type finder interface {
	Entries(ctx context.Context, orderID string) ([]Entry, error)
}

// entriesOf returns the captures of an order; a gateway that cannot look one up
// is read from the beginning.
func entriesOf(ctx context.Context, gateway Gateway, orderID string) (entries []Entry, err error) {
	if f, ok := gateway.(finder); ok {
		return f.Entries(ctx, orderID)
	}

	err = gateway.Ledger(ctx, time.Time{}, func(e Entry) error {
		if e.OrderID == orderID {
			entries = append(entries, e)
		}

		return nil
	})

	return entries, err
}

// differences compares both sides capture by capture.
func differences(recorded []Recorded, ledger []Entry) []string {
	var found []string

	left := make(map[string]Entry, len(ledger))
	for _, e := range ledger {
		left[e.TransactionID] = e
	}

	for _, r := range recorded {
		if r.TransactionID == "" {
			continue
		}

		e, captured := left[r.TransactionID]
		delete(left, r.TransactionID)

		switch {
		case !captured:
			found = append(found, fmt.Sprintf("%s is recorded as %s, the gateway has not captured it", r.TransactionID, r.Status))
		case !r.Amount.Equal(e.Amount) || r.Currency != e.Currency:
			found = append(found, fmt.Sprintf("%s is recorded with %s %s, the gateway has captured %s %s", r.TransactionID, r.Amount, r.Currency, e.Amount, e.Currency))
		case r.RefundID == "" && e.Refunded.IsPositive():
			found = append(found, fmt.Sprintf("the gateway has given back %s %s of %s, no refund is recorded", e.Refunded, e.Currency, r.TransactionID))
		case r.RefundID != "" && !e.Refunded.Equal(e.Amount):
			found = append(found, fmt.Sprintf("%s is recorded as refunded, the gateway has given back %s of %s %s", r.TransactionID, e.Refunded, e.Amount, e.Currency))
		}
	}

	for _, e := range ledger {
		if _, unknown := left[e.TransactionID]; unknown && !e.Refunded.Equal(e.Amount) {
			found = append(found, fmt.Sprintf("the gateway has captured %s, which is not recorded: %s %s", e.TransactionID, e.Amount, e.Currency))
		}
	}

	return found
}
