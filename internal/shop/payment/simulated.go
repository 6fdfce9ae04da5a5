package payment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/shopspring/decimal"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/money"
)

// Simulated is a gateway for development and tests: it captures every amount
// above zero, without calling anyone, and misbehaves as it is told to. Its
// record is a table that only it writes, at once and apart from the service's
// transactions: it survives a crash and is the same for all replicas.
type Simulated struct {
	cfg   SimulatedConfig
	rules []rule
	pool  *pgxpool.Pool // nil: it keeps no record
}

// NewSimulated returns a simulated gateway that keeps no record and never
// fails. NewGateway returns one with a record.
func NewSimulated() *Simulated { return &Simulated{} }

func newSimulated(cfg SimulatedConfig, pool *pgxpool.Pool) (*Simulated, error) {
	s := &Simulated{cfg: cfg}
	if cfg.Ledger {
		s.pool = pool
	}

	for _, text := range cfg.Rules {
		r, err := parseRule(text)
		if err != nil {
			return nil, err
		}

		s.rules = append(s.rules, r)
	}

	return s, nil
}

// action is how a request is answered.
type action string

const (
	actCapture           action = "capture"
	actDecline           action = "decline"
	actTimeout           action = "timeout"
	actError             action = "error"
	actChargeThenTimeout action = "charge_then_timeout"
	actChargeThenError   action = "charge_then_error"
	actRefundThenTimeout action = "refund_then_timeout"
)

var actions = []action{
	actCapture, actDecline, actTimeout, actError, actChargeThenTimeout, actChargeThenError, actRefundThenTimeout,
}

// idle reports whether nothing is charged.
func (a action) idle() bool { return a == actTimeout || a == actError }

// rule says how requests about some orders are answered.
type rule struct {
	prefix string
	exact  bool
	action action
	// times is how many requests for a charge meet with it: after that the
	// gateway behaves. It does not count for capture and decline.
	times int
}

// parseRule reads ORDER=ACTION or ORDER=ACTION:TIMES. ORDER is the id of an
// order, or the beginning of ids and a star. TIMES is 1 if it is not said.
func parseRule(text string) (rule, error) {
	wrong := func(what string) (rule, error) {
		return rule{}, fmt.Errorf("payment.simulated.rules: has %q, %s", text, what)
	}

	i := strings.LastIndexByte(text, '=')
	if i < 1 {
		return wrong("expected ORDER=ACTION such as declined-*=decline")
	}

	name, times, counted := strings.Cut(text[i+1:], ":")
	r := rule{action: action(name), times: 1}

	if !slices.Contains(actions, r.action) {
		return wrong(fmt.Sprintf("expected one of %v after the =", actions))
	}

	if counted {
		n, err := strconv.Atoi(times)
		if err != nil || n < 1 {
			return wrong("expected a number of requests, 1 or more, after the colon")
		}

		r.times = n
	}

	prefix, star := strings.CutSuffix(text[:i], "*")
	r.prefix, r.exact = prefix, !star

	return r, nil
}

func (r rule) matches(orderID string) bool {
	return orderID == r.prefix || (!r.exact && strings.HasPrefix(orderID, r.prefix))
}

// rate is the part of the requests that meet with an action.
type rate struct {
	action action
	part   float64
}

func (c SimulatedConfig) rates() []rate {
	return []rate{
		{actDecline, c.DeclineRate}, {actTimeout, c.TimeoutRate}, {actError, c.ErrorRate},
		{actChargeThenTimeout, c.ChargeThenTimeoutRate}, {actChargeThenError, c.ChargeThenErrorRate},
	}
}

// planned returns the rule for a request: that of the order, or one by chance.
func (s *Simulated) planned(orderID string, refund bool) rule {
	for _, r := range s.rules {
		if r.matches(orderID) && (r.action == actRefundThenTimeout) == refund {
			return r
		}
	}

	chance := rand.Float64()

	for _, rate := range s.cfg.rates() {
		if chance -= rate.part; chance < 0 && !refund {
			return rule{action: rate.action, times: math.MaxInt32} // this request, whichever it is
		}
	}

	return rule{action: actCapture}
}

// Charge captures at most once per idempotency key; the transaction id depends
// on that key alone. A request that is repeated is told what became of the first.
func (s *Simulated) Charge(ctx context.Context, charge Charge) (Outcome, error) {
	if err := pause(ctx, s.cfg.Latency); err != nil {
		return Outcome{}, unknown(err)
	}

	plan := s.planned(charge.OrderID, false)
	outcome := Outcome{TransactionID: transactionID(charge)}

	switch {
	case !charge.Amount.IsPositive():
		outcome = Outcome{Declined: "amount must be above zero"}
	case plan.action == actDecline:
		outcome = Outcome{Declined: "the card was declined"}
	}

	if s.pool == nil {
		return outcome, nil
	}

	outcome, requests, err := s.enter(ctx, charge, outcome, plan)
	if err != nil {
		return Outcome{}, err
	}

	if requests <= plan.times {
		if err := s.misbehave(ctx, plan.action); err != nil {
			return Outcome{}, err
		}
	}

	return outcome, nil
}

// enter records a request and returns what has become of the charge, and how
// often it was asked for. One statement, committed at once: whatever happens
// to the caller, the record stands.
func (s *Simulated) enter(ctx context.Context, charge Charge, wanted Outcome, plan rule) (got Outcome, requests int, err error) {
	idle := 0 // so many requests do nothing
	if plan.action.idle() {
		idle = plan.times
	}

	var same bool

	err = s.pool.QueryRow(ctx, `
		INSERT INTO gateway_ledger AS l (idempotency_key, order_id, attempt, amount, currency, transaction_id, decline_reason, settled_at)
		VALUES ($1, $2, $3, $4::text::numeric, $5, CASE WHEN $8 < 1 THEN NULLIF($6, '') END, CASE WHEN $8 < 1 THEN NULLIF($7, '') END,
		        CASE WHEN $8 < 1 THEN clock_timestamp() END)
		ON CONFLICT (idempotency_key) DO UPDATE SET
			requests       = l.requests + 1,
			transaction_id = CASE WHEN l.settled_at IS NULL AND $8 <= l.requests THEN NULLIF($6, '') ELSE l.transaction_id END,
			decline_reason = CASE WHEN l.settled_at IS NULL AND $8 <= l.requests THEN NULLIF($7, '') ELSE l.decline_reason END,
			settled_at     = CASE WHEN l.settled_at IS NULL AND $8 <= l.requests THEN clock_timestamp() ELSE l.settled_at END
		RETURNING l.requests, COALESCE(l.transaction_id, ''), COALESCE(l.decline_reason, ''),
		          l.amount = $4::text::numeric AND l.currency = $5`,
		charge.IdempotencyKey(), charge.OrderID, max(charge.Attempt, 1), charge.Amount.String(), charge.Currency,
		wanted.TransactionID, wanted.Declined, idle).Scan(&requests, &got.TransactionID, &got.Declined, &same)
	if err != nil {
		return Outcome{}, 0, unrecorded(fmt.Errorf("entering a charge into the ledger: %w", err))
	}

	if !same {
		return Outcome{}, 0, event.RejectAs(event.ReasonConflict, fmt.Errorf(
			"amount: is %s %s, expected that of the first request for attempt %d at order %s", charge.Amount, charge.Currency, max(charge.Attempt, 1), charge.OrderID))
	}

	return got, requests, nil
}

// misbehave gives no answer, or one that says nothing.
func (s *Simulated) misbehave(ctx context.Context, a action) error {
	switch a {
	case actTimeout, actChargeThenTimeout, actRefundThenTimeout:
		return unknown(errors.Join(errors.New("no answer in time"), pause(ctx, s.cfg.Timeout)))
	case actError, actChargeThenError:
		return unknown(errors.New("it answered 500"))
	default:
		return nil
	}
}

// Find implements Gateway. Without a record it says what Charge would.
func (s *Simulated) Find(ctx context.Context, charge Charge) (outcome Outcome, found bool, err error) {
	if s.pool == nil {
		outcome, err = s.Charge(ctx, charge)

		return outcome, err == nil, err
	}

	if err := pause(ctx, s.cfg.Latency); err != nil {
		return Outcome{}, false, unknown(err)
	}

	err = s.pool.QueryRow(ctx, `
		SELECT COALESCE(transaction_id, ''), COALESCE(decline_reason, '') FROM gateway_ledger
		WHERE idempotency_key = $1 AND settled_at IS NOT NULL`, charge.IdempotencyKey()).Scan(&outcome.TransactionID, &outcome.Declined)

	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Outcome{}, false, nil
	case err != nil:
		return Outcome{}, false, unrecorded(fmt.Errorf("reading the ledger: %w", err))
	default:
		return outcome, true, nil
	}
}

// Refund gives back all of a capture, once.
func (s *Simulated) Refund(ctx context.Context, refund Refund) (string, error) {
	if err := pause(ctx, s.cfg.Latency); err != nil {
		return "", unknown(err)
	}

	id := "ref_" + refund.TransactionID
	if s.pool == nil {
		return id, nil
	}

	var requests int

	err := s.pool.QueryRow(ctx, `
		UPDATE gateway_ledger SET
			refund_requests = refund_requests + 1, refund_id = $3, refunded = amount, refunded_at = COALESCE(refunded_at, clock_timestamp())
		WHERE transaction_id = $1 AND order_id = $2
		RETURNING refund_requests`, refund.TransactionID, refund.OrderID, id).Scan(&requests)

	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", &RefusedError{Reason: fmt.Sprintf("there is no capture %s of order %s", refund.TransactionID, refund.OrderID)}
	case err != nil:
		return "", unrecorded(fmt.Errorf("entering a refund into the ledger: %w", err))
	}

	if plan := s.planned(refund.OrderID, true); requests <= plan.times {
		if err := s.misbehave(ctx, plan.action); err != nil {
			return "", err
		}
	}

	return id, nil
}

// ledgerPage is how many entries are in memory at once.
const ledgerPage = 1000

// Ledger implements Gateway. Without a record there are no entries.
func (s *Simulated) Ledger(ctx context.Context, since time.Time, fn func(Entry) error) error {
	if s.pool == nil {
		return nil
	}

	key := ""

	// By pages, not one long query: that would hold vacuum back while fn works.
	for {
		rows, err := s.pool.Query(ctx, `
			SELECT idempotency_key, order_id, transaction_id, amount::text, currency, refunded::text, settled_at FROM gateway_ledger
			WHERE transaction_id IS NOT NULL AND (settled_at, idempotency_key) > ($1, $2)
			ORDER BY settled_at, idempotency_key LIMIT $3`, since, key, ledgerPage)
		if err != nil {
			return fmt.Errorf("reading the ledger: %w", err)
		}

		entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Entry, err error) {
			e, key, err = scanEntry(row)

			return e, err
		})
		if err != nil {
			return fmt.Errorf("reading the ledger: %w", err)
		}

		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}

		if len(entries) < ledgerPage {
			return nil
		}

		since = entries[len(entries)-1].At
	}
}

// Entries returns what the ledger has about an order.
func (s *Simulated) Entries(ctx context.Context, orderID string) ([]Entry, error) {
	if s.pool == nil {
		return nil, nil
	}

	rows, err := s.pool.Query(ctx, `
		SELECT idempotency_key, order_id, transaction_id, amount::text, currency, refunded::text, settled_at FROM gateway_ledger
		WHERE transaction_id IS NOT NULL AND order_id = $1
		ORDER BY settled_at`, orderID)
	if err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", err)
	}

	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Entry, err error) {
		e, _, err = scanEntry(row)

		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", err)
	}

	return entries, nil
}

func scanEntry(row pgx.CollectableRow) (e Entry, key string, err error) {
	var amount, refunded decimal.Decimal

	err = row.Scan(&key, &e.OrderID, &e.TransactionID, &amount, &e.Currency, &refunded, &e.At)
	e.Amount, e.Refunded = money.Amount{Decimal: amount}, money.Amount{Decimal: refunded}

	return e, key, err
}

// transactionID is the same for every request with the same idempotency key.
func transactionID(charge Charge) string {
	sum := sha256.Sum256([]byte(charge.IdempotencyKey()))

	return "txn_" + hex.EncodeToString(sum[:8])
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}

	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
