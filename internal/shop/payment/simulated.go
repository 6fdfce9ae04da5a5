package payment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Simulated is a gateway for development and tests. It captures every amount
// above zero without calling a provider, and fails as configured. Its record is a
// table that only it writes, outside the service's transactions, so the record
// survives crashes. All replicas share it.
type Simulated struct {
	cfg  SimulatedConfig
	pool *pgxpool.Pool // nil without a record
}

// NewSimulated returns a simulated gateway that keeps no record and never
// fails. NewGateway returns one with a record.
func NewSimulated() *Simulated { return &Simulated{} }

// Charge captures at most once per idempotency key; the transaction id depends
// on the key alone. A repeated request returns the first outcome.
func (s *Simulated) Charge(ctx context.Context, charge Charge) (Outcome, error) {
	if err := backoff.Sleep(ctx, s.cfg.Latency); err != nil {
		return Outcome{}, unknown(err)
	}

	action, times := s.cfg.plan(charge.OrderID, false)
	outcome := Outcome{TransactionID: transactionID(charge)}

	switch {
	case !charge.Amount.IsPositive():
		outcome = Outcome{Declined: "amount must be above zero"}
	case action == actionDecline || action == actionPendingDecline:
		outcome = Outcome{Declined: "the card was declined"}
	}

	if s.pool == nil {
		return outcome, nil
	}

	unanswered, waits := 0, action == actionPending || action == actionPendingDecline
	if waits || action == actionTimeout || action == actionError {
		unanswered = times
	}

	outcome, requests, err := s.record(ctx, charge, outcome, unanswered, waits)
	if err == nil && requests <= times {
		err = s.fail(ctx, action)
	}

	if err != nil {
		return Outcome{}, err
	}

	return outcome, nil
}

// record enters a request into the ledger and returns the outcome of the charge and the
// number of requests for it. unanswered is the number of initial requests that charge
// nothing; waits reports whether they were accepted. The statement commits on its own, so
// the record survives even if the caller fails.
func (s *Simulated) record(ctx context.Context, charge Charge, wanted Outcome, unanswered int, waits bool) (outcome Outcome, requests int, err error) {
	var sameAmount bool

	err = s.pool.QueryRow(ctx, `
		INSERT INTO gateway_ledger AS l (idempotency_key, order_id, attempt, amount, currency, transaction_id, decline_reason, settled_at, pending)
		VALUES ($1, $2, $3, $4::text::numeric, $5, CASE WHEN $8 < 1 THEN NULLIF($6, '') END, CASE WHEN $8 < 1 THEN NULLIF($7, '') END,
		        CASE WHEN $8 < 1 THEN clock_timestamp() END, $9)
		ON CONFLICT (idempotency_key) DO UPDATE SET
			requests       = l.requests + 1,
			pending        = l.pending OR $9,
			transaction_id = CASE WHEN l.settled_at IS NULL AND $8 <= l.requests THEN NULLIF($6, '') ELSE l.transaction_id END,
			decline_reason = CASE WHEN l.settled_at IS NULL AND $8 <= l.requests THEN NULLIF($7, '') ELSE l.decline_reason END,
			settled_at     = CASE WHEN l.settled_at IS NULL AND $8 <= l.requests THEN clock_timestamp() ELSE l.settled_at END
		RETURNING l.requests, COALESCE(l.transaction_id, ''), COALESCE(l.decline_reason, ''),
		          l.amount = $4::text::numeric AND l.currency = $5`,
		charge.IdempotencyKey(), charge.OrderID, charge.attempt(), charge.Amount.String(), charge.Currency,
		wanted.TransactionID, wanted.Declined, unanswered, waits).Scan(&requests, &outcome.TransactionID, &outcome.Declined, &sameAmount)

	switch {
	case err != nil:
		return Outcome{}, 0, unrecorded(fmt.Errorf("recording a charge in the ledger: %w", err))
	case !sameAmount:
		return Outcome{}, 0, event.RejectAs(event.ReasonConflict, fmt.Errorf(
			"amount: is %s %s, expected the amount of the first request for attempt %d of order %s", charge.Amount, charge.Currency, charge.attempt(), charge.OrderID))
	default:
		return outcome, requests, nil
	}
}

// fail returns the error that an action calls for.
func (s *Simulated) fail(ctx context.Context, action Action) error {
	switch action {
	case actionTimeout, actionChargeThenTimeout, actionRefundThenTimeout:
		return unknown(errors.Join(errors.New("no answer in time"), backoff.Sleep(ctx, s.cfg.Timeout)))
	case actionPending, actionPendingDecline, actionRefundPending, actionRefundPendingFail:
		return event.Pending(s.cfg.Timeout, ErrPending)
	case actionError, actionChargeThenError:
		return unknown(errors.New("it answered 500"))
	default:
		return nil
	}
}

// Find implements Gateway. Without a record, or if the charge is pending, it returns
// what Charge would.
func (s *Simulated) Find(ctx context.Context, charge Charge) (outcome Outcome, err error) {
	if s.pool == nil {
		return s.Charge(ctx, charge)
	}

	if err := backoff.Sleep(ctx, s.cfg.Latency); err != nil {
		return Outcome{}, unknown(err)
	}

	var waits bool

	err = s.pool.QueryRow(ctx, `
		SELECT COALESCE(transaction_id, ''), COALESCE(decline_reason, ''), pending AND settled_at IS NULL FROM gateway_ledger
		WHERE idempotency_key = $1`, charge.IdempotencyKey()).Scan(&outcome.TransactionID, &outcome.Declined, &waits)

	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return Outcome{}, unrecorded(fmt.Errorf("reading the ledger: %w", err))
	case waits:
		return s.Charge(ctx, charge)
	default:
		return outcome, nil
	}
}

// Refund refunds a capture in full, and only once.
func (s *Simulated) Refund(ctx context.Context, refund Refund) (string, error) {
	if err := backoff.Sleep(ctx, s.cfg.Latency); err != nil {
		return "", unknown(err)
	}

	id := "ref_" + refund.TransactionID

	switch {
	case refund.FailedID != "":
		return "", &RefusedError{Reason: fmt.Sprintf("the refund %s failed", refund.FailedID)}
	case s.pool == nil:
		return id, nil
	}

	action, times := s.cfg.plan(refund.OrderID, true)
	refused := 0 // the number of initial requests that refund nothing

	switch action {
	case actionRefundPending:
		refused = times
	case actionRefundPendingFail:
		refused = math.MaxInt32
	}

	var requests int

	err := s.pool.QueryRow(ctx, `
		UPDATE gateway_ledger SET refund_requests = refund_requests + 1,
			refund_id   = CASE WHEN refund_requests < $4 THEN refund_id ELSE $3 END,
			refunded    = CASE WHEN refund_requests < $4 THEN refunded ELSE amount END,
			refunded_at = CASE WHEN refund_requests < $4 THEN refunded_at ELSE COALESCE(refunded_at, clock_timestamp()) END
		WHERE transaction_id = $1 AND order_id = $2
		RETURNING refund_requests`, refund.TransactionID, refund.OrderID, id, refused).Scan(&requests)

	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", &RefusedError{Reason: fmt.Sprintf("there is no capture %s of order %s", refund.TransactionID, refund.OrderID)}
	case err != nil:
		return "", unrecorded(fmt.Errorf("recording a refund in the ledger: %w", err))
	}

	switch {
	case requests <= times:
		err = s.fail(ctx, action)
	case action == actionRefundPendingFail:
		err = &RefusedError{Reason: "the refund failed"}
	}

	if err != nil {
		return "", err
	}

	return id, nil
}

// ledgerPage is the number of entries in memory at a time.
const ledgerPage = 1000

const selectEntries = `
	SELECT order_id, transaction_id, amount::text, currency, refunded::text, settled_at, idempotency_key FROM gateway_ledger
	WHERE transaction_id IS NOT NULL AND `

// keyedEntry is an Entry with its key, after which the next page starts.
type keyedEntry struct {
	Entry

	Key string
}

// Ledger implements Gateway. Without a record there are no entries.
func (s *Simulated) Ledger(ctx context.Context, since time.Time, fn func(Entry) error) error {
	if s.pool == nil {
		return nil
	}

	// Read in pages, because one long query would hold back vacuum while fn runs.
	for last := (keyedEntry{Entry: Entry{At: since}}); ; {
		page, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[keyedEntry], selectEntries+`(settled_at, idempotency_key) > ($1, $2)
			ORDER BY settled_at, idempotency_key LIMIT $3`, last.At, last.Key, ledgerPage)
		if err != nil {
			return fmt.Errorf("reading the ledger: %w", err)
		}

		for _, e := range page {
			if err := fn(e.Entry); err != nil {
				return err
			}
		}

		if len(page) < ledgerPage {
			return nil
		}

		last = page[len(page)-1]
	}
}

// Entries implements Gateway. Without a record there are none.
func (s *Simulated) Entries(ctx context.Context, orderID string) ([]Entry, error) {
	if s.pool == nil {
		return nil, nil
	}

	entries, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[keyedEntry], selectEntries+`order_id = $1 ORDER BY settled_at`, orderID)
	if err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", err)
	}

	return postgres.Column(entries, func(e keyedEntry) Entry { return e.Entry }), nil
}

// transactionID is the same for each request with the same idempotency key.
func transactionID(charge Charge) string {
	sum := sha256.Sum256([]byte(charge.IdempotencyKey()))

	return "txn_" + hex.EncodeToString(sum[:8])
}
