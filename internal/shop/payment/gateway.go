package payment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/money"
)

// Charge is a request to capture an amount.
type Charge struct {
	OrderID string
	// Attempt is the number of the charge for the order. Defaults to 1.
	Attempt  int
	Amount   money.Amount
	Currency string
}

func (c Charge) attempt() int { return max(c.Attempt, 1) }

// IdempotencyKey is the same for each request of one attempt to charge an
// order, so repeated requests charge once.
func (c Charge) IdempotencyKey() string {
	return "millrace-charge-" + c.OrderID + "-" + strconv.Itoa(c.attempt())
}

// Outcome is the result of a charge. The zero Outcome means that nothing was
// charged and nothing was declined.
type Outcome struct {
	// TransactionID is the gateway's id of the capture.
	TransactionID string
	// Declined is the reason why nothing was captured.
	Declined string
}

// Captured reports whether the money was taken.
func (o Outcome) Captured() bool { return o.TransactionID != "" }

// Refund is a request to return all of a capture.
type Refund struct {
	OrderID       string
	TransactionID string
	Amount        money.Amount
	Currency      string
	// FailedID is an earlier refund of the capture, which failed. If it is set, no
	// refund is made; a later one that a person made is looked up.
	FailedID string
}

// IdempotencyKey is the same for each request to refund a capture.
func (r Refund) IdempotencyKey() string {
	return "millrace-refund-" + r.OrderID + "-" + r.TransactionID
}

// Gateway captures and refunds money. It is an interface because payment
// providers differ. An implementation captures and refunds at most once per
// idempotency key.
//
// After an error the outcome is unknown, and the same request may be repeated.
// A final refusal of a charge is a Declined outcome; any other final refusal is a
// RefusedError. event.Later sets when to repeat a request; event.Unavailable means
// that the provider cannot be reached or that the outcome is unknown. A preliminary
// answer is an ErrPending: an outcome or the id of a refund is final.
type Gateway interface {
	Charge(ctx context.Context, charge Charge) (Outcome, error)
	// Find returns the outcome of a charge that may have been requested, or the
	// zero Outcome if the gateway does not know the charge.
	Find(ctx context.Context, charge Charge) (Outcome, error)
	// Refund returns the gateway's id of the refund.
	Refund(ctx context.Context, refund Refund) (refundID string, err error)
	// Ledger calls fn with each capture that the gateway has recorded since a
	// time. It uses bounded memory.
	Ledger(ctx context.Context, since time.Time, fn func(Entry) error) error
	// Entries returns the captures of one order.
	Entries(ctx context.Context, orderID string) ([]Entry, error)
}

// Entry is a capture in the gateway's own record.
type Entry struct {
	OrderID       string       `json:"order_id"`
	TransactionID string       `json:"transaction_id"`
	Amount        money.Amount `json:"amount"`
	Currency      string       `json:"currency"`
	// Refunded is the sum of the refunds.
	Refunded money.Amount `json:"refunded"`
	At       time.Time    `json:"at"`
}

// RefusedError is a final refusal by the provider.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the payment provider refused: " + e.Reason }

// ErrUnknown means that the provider may or may not have done what it was asked to
// do: no answer arrived, or the answer does not say. Repeating the request reveals
// the outcome; until then nothing may be compensated.
var ErrUnknown = errors.New("the outcome at the payment provider is unknown")

// ErrPending means that the provider has accepted a request and has not decided yet.
// Repeating the request reveals the outcome, which may take days.
var ErrPending = errors.New("the payment provider has not decided yet")

// The pause before asking again about a pending request is half its age, within these
// bounds.
const (
	minPendingPause = 5 * time.Second
	maxPendingPause = time.Hour
)

// pending returns an ErrPending; since is the time at which the request was made.
func pending(since time.Time, text string) error {
	after := min(max(time.Since(since)/2, minPendingPause), maxPendingPause)

	return event.Pending(after, fmt.Errorf("%w: %s", ErrPending, text))
}

// Dependency is the provider's name among the service's dependencies.
const Dependency = "payment gateway"

func unknown(err error) error {
	return event.Unavailable(Dependency, fmt.Errorf("%w: %w", ErrUnknown, err))
}

// unrecorded is the error from a request whose record in Postgres could not be read or
// written. If money has moved anyway, the next request will find out.
func unrecorded(err error) error {
	if postgres.IsUnavailable(err) {
		return event.Unavailable(postgres.Dependency, err)
	}

	return err
}

// TopicReported carries the outcomes that providers report by webhook.
const TopicReported = "payments.reported"

// maxReason is the maximum length of the reason in a report, in characters.
const maxReason = 2000

// Report is an outcome that the provider reports by webhook.
type Report string

// Reports.
const (
	ReportCaptured     Report = "captured"
	ReportDeclined     Report = "declined"
	ReportRefunded     Report = "refunded"
	ReportRefundFailed Report = "refund_failed"
	ReportDisputed     Report = "disputed"
)

// Reported is a provider's message about a payment. It may arrive before,
// after or instead of the response to the request.
type Reported struct {
	OrderID string `doc:"The order."                                   format:"id"                                              json:"order_id"`
	Attempt int    `doc:"The number of the charge, from 1; 0 means 1." json:"attempt,omitzero"`
	Outcome Report `doc:"What the provider reports."                   enum:"captured,declined,refunded,refund_failed,disputed" json:"outcome"`
	// TransactionID is the id of the capture, even for a refund or a dispute.
	TransactionID string        `doc:"The capture, even for a refund or a dispute. Required unless declined." format:"id"       json:"transaction_id,omitempty"`
	RefundID      string        `doc:"The refund. Required for refunded and refund_failed."                   format:"id"       json:"refund_id,omitempty"`
	Amount        *money.Amount `doc:"The amount."                                                            json:"amount"`
	Currency      string        `doc:"The currency of the amount."                                            format:"currency" json:"currency"`
	// Reason is the reason why the payment was declined or disputed, or why the refund
	// failed.
	Reason string `doc:"Why the payment was declined or disputed, or why the refund failed. Required then." format:"text" json:"reason,omitempty" maxLength:"2000"`
}

// Topic implements event.Payload.
func (Reported) Topic() string { return TopicReported }

// Key implements event.Payload.
func (p Reported) Key() string { return p.OrderID }

// Validate implements event.Payload.
func (p Reported) Validate() error {
	is := func(outcomes ...Report) bool { return slices.Contains(outcomes, p.Outcome) }

	return errors.Join(
		event.CheckID("order_id", p.OrderID),
		check.Value(is(ReportCaptured, ReportDeclined, ReportRefunded, ReportRefundFailed, ReportDisputed), "outcome", string(p.Outcome),
			"captured, declined, refunded, refund_failed or disputed"),
		checkIf(is(ReportCaptured, ReportRefunded, ReportRefundFailed, ReportDisputed), "transaction_id", p.TransactionID),
		checkIf(is(ReportRefunded, ReportRefundFailed), "refund_id", p.RefundID),
		check.That(!is(ReportDeclined, ReportRefundFailed, ReportDisputed) || p.Reason != "",
			"reason: is missing, expected one with outcome "+string(p.Outcome)),
		event.CheckText("reason", p.Reason, maxReason),
		money.CheckMoved("amount", p.Amount, p.Currency),
	)
}

// checkIf validates an ID that is required in some cases.
func checkIf(required bool, path, id string) error {
	if required {
		return event.CheckID(path, id)
	}

	return event.CheckOptionalID(path, id)
}
