package payment

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/money"
)

// Charge is a request to capture an amount.
type Charge struct {
	OrderID string
	// Attempt counts the charges of an order; 0 means 1.
	Attempt  int
	Amount   money.Amount
	Currency string
}

// IdempotencyKey is the same for every request of the same attempt to charge
// an order, so that a gateway charges once however often it is asked.
func (c Charge) IdempotencyKey() string {
	return "millrace-charge-" + c.OrderID + "-" + strconv.Itoa(max(c.Attempt, 1))
}

// Outcome is what became of a charge.
type Outcome struct {
	// TransactionID is the gateway's id of the capture, empty when declined.
	TransactionID string
	// Declined is why nothing was captured, empty otherwise.
	Declined string
}

// Captured reports whether the money was taken.
func (o Outcome) Captured() bool { return o.TransactionID != "" }

// Refund is a request to give back all of a capture.
type Refund struct {
	OrderID       string
	TransactionID string
	Amount        money.Amount
	Currency      string
}

// IdempotencyKey is the same for every request to refund the same capture.
func (r Refund) IdempotencyKey() string {
	return "millrace-refund-" + r.OrderID + "-" + r.TransactionID
}

// Gateway takes money and gives it back. It is an interface because payment
// providers differ. An implementation captures and refunds at most once per
// idempotency key.
//
// An error means that the outcome is not known: the same request may be made
// again. What the provider refuses for good is a Declined outcome of a charge,
// or a RefusedError of anything else. event.Later says when it may succeed,
// event.Unavailable that the provider is out of reach, or an outcome unknown.
type Gateway interface {
	Charge(ctx context.Context, charge Charge) (Outcome, error)
	// Find returns what became of a charge that may have been asked for; found
	// is false when the gateway has never heard of it.
	Find(ctx context.Context, charge Charge) (outcome Outcome, found bool, err error)
	// Refund returns the gateway's id of the refund.
	Refund(ctx context.Context, refund Refund) (refundID string, err error)
	// Ledger calls fn with each capture that the gateway has recorded since a
	// time, for the audit. It needs bounded memory.
	Ledger(ctx context.Context, since time.Time, fn func(Entry) error) error
}

// Entry is a capture in the gateway's own record.
type Entry struct {
	OrderID       string       `json:"order_id"`
	TransactionID string       `json:"transaction_id"`
	Amount        money.Amount `json:"amount"`
	Currency      string       `json:"currency"`
	// Refunded is the sum of what was given back.
	Refunded money.Amount `json:"refunded"`
	At       time.Time    `json:"at"`
}

// RefusedError says that the provider refused a request for good.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the payment provider refuses: " + e.Reason }

// TopicReported carries what a provider tells by itself.
const TopicReported = "payments.reported"

// Report is an outcome that the provider reports by itself, by webhook.
type Report string

// Reports.
const (
	ReportCaptured Report = "captured"
	ReportDeclined Report = "declined"
	ReportRefunded Report = "refunded"
)

// Reported is a message about a payment that the provider sent by itself. It
// may come before or after the answer to the request, or instead of it.
type Reported struct {
	OrderID string `json:"order_id"`
	Attempt int    `json:"attempt,omitzero"`
	Outcome Report `json:"outcome"`
	// TransactionID is that of the capture, also when it is refunded.
	TransactionID string        `json:"transaction_id,omitempty"`
	RefundID      string        `json:"refund_id,omitempty"`
	Amount        *money.Amount `json:"amount"`
	Currency      string        `json:"currency"`
	// Reason is why it was declined.
	Reason string `json:"reason,omitempty"`
}

// Topic implements event.Payload.
func (Reported) Topic() string { return TopicReported }

// Key implements event.Payload.
func (p Reported) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p Reported) Validate() error {
	errs := []error{event.CheckID("order_id", p.OrderID)}

	switch p.Outcome {
	case ReportCaptured, ReportRefunded:
		if p.TransactionID == "" {
			errs = append(errs, fmt.Errorf("transaction_id: is missing, expected one with outcome %s", p.Outcome))
		}
	case ReportDeclined:
		if p.Reason == "" {
			errs = append(errs, errors.New("reason: is missing, expected one with outcome declined"))
		}
	default:
		errs = append(errs, fmt.Errorf("outcome: is %q, expected captured, declined or refunded", p.Outcome))
	}

	if p.Outcome == ReportRefunded && p.RefundID == "" {
		errs = append(errs, errors.New("refund_id: is missing, expected one with outcome refunded"))
	}

	return errors.Join(append(errs, money.Check("amount", p.Amount, p.Currency))...)
}
