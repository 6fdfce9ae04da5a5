package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/shop/audit"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// ledger is a gateway whose record the test writes.
type ledger struct {
	payment.Gateway

	entries []payment.Entry
}

// Ledger implements payment.Gateway.
func (l *ledger) Ledger(_ context.Context, since time.Time, fn func(payment.Entry) error) error {
	for _, e := range l.entries {
		if e.At.Before(since) {
			continue
		}

		if err := fn(e); err != nil {
			return err
		}
	}

	return nil
}

// healthy runs orders, users and a bad message through the service until all are
// processed, and returns the database and a gateway whose record agrees with it. It
// backdates everything by a day.
func healthy(t *testing.T) (*pgxpool.Pool, *ledger) {
	t.Helper()

	url := pgtest.URL(t)
	s := apptest.New(t, url)
	s.Run()
	s.Seed()

	for i := range 5 {
		s.Publish("orders.created", fmt.Sprintf(`{"order":{"id":"paid_%d","product_id":"product_1","quantity":2,"total_amount":"9.99"}}`, i))
	}

	s.Publish("orders.created", `{"order":{"id":"declined","product_id":"product_2","quantity":1,"total_amount":0}}`)
	s.Publish("orders.created", `{"order":{"id":"short","product_id":"product_3","quantity":1000,"total_amount":5}}`)
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)
	s.Publish("user.updated", `{"user_id":"alice","updates":{"name":"Alicia"}}`)

	for i := range 5 {
		s.WaitForOrder(fmt.Sprint("paid_", i), "completed")
	}

	s.WaitForOrder("declined", "payment_failed")
	s.WaitForOrder("short", "inventory_unavailable")
	s.WaitUntilIdle()

	gateway := &ledger{}

	err := s.Gateway.Ledger(t.Context(), time.Time{}, func(e payment.Entry) error {
		e.At = e.At.AddDate(0, 0, -1)
		gateway.entries = append(gateway.entries, e)

		return nil
	})
	if err != nil || len(gateway.entries) != 5 {
		t.Fatalf("the gateway has %v, %v", gateway.entries, err)
	}

	pgtest.Eventually(t, "the projection catches up", func() bool {
		return apptest.Value[bool](s, `SELECT coalesce((SELECT position FROM projections) >= max(position) AND (SELECT count(*) FROM users) = 1, false) FROM events`)
	})
	s.Stop()

	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(pool.Close)
	execute(t, pool, `
		INSERT INTO failed_messages (state, deliveries, consumer, topic, message_id, fingerprint, origin, key, headers, payload, reason, error)
		VALUES ('stopped', 1, 'fulfilment.place', 'orders.created', gen_random_uuid(), ('x' || encode(substr(sha256('nonsense'), 1, 8), 'hex'))::bit(64)::bigint,
		        'test', 'k', '{}', 'nonsense', 'rejected', 'it is nonsense')`)
	execute(t, pool, `UPDATE orders SET updated_at = updated_at - interval '1 day'`)
	execute(t, pool, `UPDATE payments SET recorded_at = recorded_at - interval '1 day'`)

	return pool, gateway
}

func execute(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()

	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func run(t *testing.T, pool *pgxpool.Pool, gateway payment.Gateway, options invariant.Options) invariant.Report {
	t.Helper()

	report, err := audit.New(pool, gateway).Run(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}

	return report
}

// found lists the violations as "check: id detail".
func found(report invariant.Report) []string {
	var all []string

	for _, c := range report.Checks {
		for _, v := range c.First {
			all = append(all, c.Name+": "+v.ID+" "+v.Detail)
		}
	}

	return all
}

func TestAHealthyDatabaseHasNoViolations(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)
	report := run(t, pool, gateway, invariant.Options{})

	if err := report.Err(); err != nil {
		t.Errorf("%v: %v", err, found(report))
	}

	for _, c := range report.Checks {
		if c.Examined == 0 && c.Name != "outbox" && c.Name != "waiting" {
			t.Errorf("%s examined nothing", c.Name)
		}
	}
}

// corruption changes the database or the gateway's record. One check finds it.
type corruption struct {
	name     string
	corrupt  string
	want, id string
	gateway  func([]payment.Entry) []payment.Entry
}

// captured is a charge in the gateway's record.
func captured(order, transaction, amount string, at time.Time) payment.Entry {
	return payment.Entry{OrderID: order, TransactionID: transaction, Amount: money.MustParse(amount), Refunded: money.MustParse("0"), Currency: "USD", At: at}
}

var corruptions = []corruption{
	{
		name: "an order is stuck", want: "in-flight", id: "stuck",
		corrupt: `
			INSERT INTO orders (id, status, version, total_amount, currency, lines, updated_at)
			SELECT 'stuck', 'created', 1, total_amount, currency, lines, now() - interval '1 day' FROM orders WHERE id = 'paid_0';
			INSERT INTO events (stream, version, type, data, message_id) SELECT 'order-stuck', 1, type, data, message_id FROM events WHERE stream = 'order-paid_0' AND version = 1`,
	},
	{
		name: "an order that failed keeps the money", want: "captures", id: "declined",
		corrupt: `UPDATE payments SET status = 'captured', decline_reason = NULL, transaction_id = 'txn_kept' WHERE order_id = 'declined'`,
		gateway: func(entries []payment.Entry) []payment.Entry {
			return append(entries, captured("declined", "txn_kept", "0", time.Now()))
		},
	},
	{
		name: "an order is charged twice", want: "captures", id: "paid_1",
		corrupt: `INSERT INTO payments (order_id, status, amount, currency, transaction_id) SELECT order_id, status, amount, currency, 'txn_twice' FROM payments WHERE order_id = 'paid_1'`,
		gateway: func(entries []payment.Entry) []payment.Entry {
			return append(entries, captured("paid_1", "txn_twice", "9.99", time.Now()))
		},
	},
	{
		name: "a step that never happened is compensated", want: "compensation", id: "short",
		corrupt: `UPDATE events SET type = 'PaymentFailed' WHERE stream = 'order-short' AND version = 2; UPDATE orders SET status = 'payment_failed' WHERE id = 'short'`,
	},
	{
		name: "a stream has a gap", want: "streams", id: "order-paid_2",
		corrupt: `UPDATE events SET version = 5 WHERE stream = 'order-paid_2' AND version = 4; UPDATE orders SET version = 5 WHERE id = 'paid_2'`,
	},
	{
		name: "a user's stream has a gap", want: "streams", id: "user-alice",
		corrupt: `UPDATE events SET version = version + 1 WHERE stream = 'user-alice' AND version = (SELECT max(version) FROM events WHERE stream = 'user-alice'); UPDATE users SET version = version + 1`,
	},
	{
		name: "a row is behind its stream", want: "fold", id: "paid_3",
		corrupt: `UPDATE orders SET version = 3 WHERE id = 'paid_3'`,
	},
	{
		name: "the total of an order has changed", want: "contents", id: "short",
		corrupt: `UPDATE orders SET total_amount = 6 WHERE id = 'short'`,
	},
	{
		name: "stock vanishes", want: "stock", id: "product_3",
		corrupt: `UPDATE stock SET available = available - 1 WHERE product_id = 'product_3'`,
	},
	{
		name: "stock is reserved without an order", want: "reservations", id: "product_2",
		corrupt: `UPDATE stock SET available = available - 1, reserved = reserved + 1 WHERE product_id = 'product_2'`,
	},
	{
		name: "a capture pays two orders", want: "transactions", id: "txn_one",
		corrupt: `UPDATE payments SET transaction_id = 'txn_one' WHERE order_id IN ('paid_0', 'paid_1')`,
		gateway: func(entries []payment.Entry) []payment.Entry {
			entries = slices.DeleteFunc(entries, func(e payment.Entry) bool { return e.OrderID == "paid_0" || e.OrderID == "paid_1" })

			return append(entries, captured("paid_0", "txn_one", "9.99", time.Now().AddDate(0, 0, -1)))
		},
	},
	{
		name: "a capture is not recorded", want: "ledger", id: "short",
		gateway: func(entries []payment.Entry) []payment.Entry {
			return append(entries, captured("short", "txn_lost", "5", time.Now().AddDate(0, 0, -1)))
		},
	},
	{
		name: "the gateway does not know a capture", want: "ledger", id: "paid_0",
		gateway: func(entries []payment.Entry) []payment.Entry {
			return slices.DeleteFunc(entries, func(e payment.Entry) bool { return e.OrderID == "paid_0" })
		},
	},
	{
		name: "the projection missed an event", want: "users", id: "alice",
		corrupt: `UPDATE users SET version = version - 1`,
	},
	{
		name: "a projection has stopped", want: "projections", id: "users",
		corrupt: `INSERT INTO events (stream, version, type, data, message_id, recorded_at)
			SELECT stream, version + 1, type, data, message_id, now() - interval '1 hour' FROM events WHERE stream = 'user-alice' ORDER BY version DESC LIMIT 1`,
	},
	{
		name: "a message has not been published", want: "outbox", id: "1000000",
		corrupt: `INSERT INTO outbox (seq, shard, topic, message_id, key, correlation_id, payload, created_at) OVERRIDING SYSTEM VALUE
			SELECT 1000000, 0, 't', id, 'k', id, '', now() - interval '1 hour' FROM gen_random_uuid() AS id`,
	},
	{
		name: "an inbox row is in the partition of another day", want: "inbox", id: "fulfilment.place",
		corrupt: `INSERT INTO inbox (consumer, message_id, day, fingerprint) SELECT consumer, message_id, date '1970-01-01', fingerprint FROM inbox WHERE consumer = 'fulfilment.place' LIMIT 1`,
	},
	{
		name: "an effect has no inbox row", want: "effects", id: "",
		corrupt: `DELETE FROM inbox WHERE message_id = (SELECT message_id FROM events WHERE stream = 'order-paid_4' AND version = 3)`,
	},
	{
		name: "the bytes of a failed message have changed", want: "failed", id: "",
		corrupt: `UPDATE failed_messages SET payload = 'edited'`,
	},
	{
		name: "a waiting key has no waiting message", want: "waiting", id: "c k",
		corrupt: `INSERT INTO failed_keys (consumer, key, due_at) VALUES ('c', 'k', now())`,
	},
}

// Each corruption is reverted before the next one.
func TestEachCorruptionIsFoundByItsCheckAlone(t *testing.T) { //nolint:tparallel // they share the database
	t.Parallel()

	pool, gateway := healthy(t)
	execute(t, pool, `
		ALTER TABLE stock DROP CONSTRAINT stock_balanced;
		ALTER TABLE payments DROP CONSTRAINT payments_pkey;
		ALTER TABLE inbox DROP CONSTRAINT inbox_pkey`)

	for _, c := range corruptions {
		t.Run(c.name, func(t *testing.T) {
			before := *gateway
			if c.gateway != nil {
				gateway.entries = c.gateway(slices.Clone(gateway.entries))
			}

			restore := corrupt(t, pool, c.corrupt)

			got := found(run(t, pool, gateway, invariant.Options{}))
			if len(got) != 1 || !strings.HasPrefix(got[0], c.want+": "+c.id) {
				t.Errorf("found %q, expected %s of %s alone", got, c.want, c.id)
			}

			restore()

			*gateway = before
		})
	}

	if got := found(run(t, pool, gateway, invariant.Options{})); len(got) > 0 {
		t.Errorf("the corruptions were not reverted: %q", got)
	}
}

// kept lists the tables that corruptions change.
var kept = []string{"orders", "events", "payments", "stock", "users", "outbox", "inbox", "failed_keys", "failed_messages"}

// corrupt runs sql and returns a function that reverts it.
func corrupt(t *testing.T, pool *pgxpool.Pool, sql string) (restore func()) {
	t.Helper()

	for _, table := range kept {
		execute(t, pool, fmt.Sprintf(`DROP TABLE IF EXISTS kept_%[1]s; CREATE TABLE kept_%[1]s AS SELECT * FROM %[1]s`, table))
	}

	if sql != "" {
		execute(t, pool, sql)
	}

	return func() {
		for _, table := range slices.Backward(kept) {
			execute(t, pool, `DELETE FROM `+table)
		}

		for _, table := range slices.Backward(kept) {
			columns := pgtest.Value[string](t, pool, `SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
				WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`, table)
			execute(t, pool, fmt.Sprintf(`INSERT INTO %[1]s (%[2]s) OVERRIDING SYSTEM VALUE SELECT %[2]s FROM kept_%[1]s`, table, columns))
		}
	}
}

func TestWorkInProgressIsNotAViolation(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)

	// The gateway has captured a payment whose transaction has not committed; a
	// message that was scheduled long ago is being published.
	execute(t, pool, `
		INSERT INTO orders (id, status, version, total_amount, currency, lines) SELECT 'new', 'inventory_reserved', 2, 9.99, 'USD', lines FROM orders WHERE id = 'paid_0';
		INSERT INTO events (stream, version, type, data, message_id) SELECT 'order-new', version, type, data, message_id FROM events WHERE stream = 'order-paid_0' AND version < 3;
		UPDATE stock SET available = available - 2, reserved = reserved + 2 WHERE product_id = 'product_1';
		INSERT INTO outbox (shard, topic, message_id, key, correlation_id, payload, created_at)
		SELECT 0, 't', id, 'k', id, '', now() - interval '1 hour' FROM gen_random_uuid() AS id`)

	gateway.entries = append(gateway.entries, captured("new", "txn_new", "9.99", time.Now()))

	report := run(t, pool, gateway, invariant.Options{Progress: func(step, steps int, _ string) {
		if step == steps-1 { // the snapshot has been taken
			execute(t, pool, `DELETE FROM outbox`)
		}
	}})

	if got := found(report); len(got) > 0 {
		t.Errorf("found %q", got)
	}
}

func TestRepairFixesViolationsWithOneSafeAnswer(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)
	execute(t, pool, `
		UPDATE stock SET available = available - 3, reserved = reserved + 3 WHERE product_id = 'product_1';
		UPDATE orders SET status = 'paid', version = 3 WHERE id = 'paid_0';
		UPDATE users SET version = 1`)

	auditor := audit.New(pool, gateway)
	report := run(t, pool, gateway, invariant.Options{})

	for _, dry := range []bool{true, false} {
		repairs, err := auditor.Repair(t.Context(), report, activity.Actor{Who: "somebody", Why: "because"}, dry)
		if err != nil {
			t.Fatal(err)
		}

		var got []string
		for _, r := range repairs {
			got = append(got, r.Check+" "+r.ID+": "+r.What)
		}

		want := []string{
			"fold paid_0: status paid -> completed, version 3 -> 4",
			"reservations product_1: available 87 -> 90, reserved 3 -> 0, sold 10 -> 10",
		}
		if dry { // the order is still paid
			want[1] = "reservations product_1: available 87 -> 90, reserved 3 -> 2, sold 10 -> 8"
		}

		if !slices.Equal(got, want) {
			t.Errorf("dry=%v: repaired %q, expected %q", dry, got, want)
		}

		expected := 2
		if dry {
			expected = 0
		}

		if rows := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM operator_actions WHERE action = 'repaired' AND who = 'somebody' AND why = 'because'`); rows != expected {
			t.Errorf("dry=%v: %d repairs are recorded, expected %d", dry, rows, expected)
		}
	}

	var violated *invariant.ViolatedError
	if err := run(t, pool, gateway, invariant.Options{}).Err(); !errors.As(err, &violated) || !slices.Equal(violated.Checks, []string{"users"}) {
		t.Errorf("got %v, expected violations of users only", err)
	}
}

func TestRepairRefusesWithoutASafeAnswer(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)
	execute(t, pool, `
		UPDATE stock SET supplied = 5, available = 0, reserved = 0, sold = 5 WHERE product_id = 'product_1';
		DELETE FROM events WHERE stream = 'order-paid_0' AND version = 3;
		UPDATE orders SET version = 3 WHERE id = 'paid_0'`)

	repairs, err := audit.New(pool, gateway).Repair(t.Context(), run(t, pool, gateway, invariant.Options{}), activity.Actor{Who: "somebody"}, false)
	if err != nil {
		t.Fatal(err)
	}

	for _, r := range repairs {
		if r.Refused == "" || r.What != "" {
			t.Errorf("repaired %+v", r)
		}
	}

	if len(repairs) != 2 {
		t.Errorf("got %+v", repairs)
	}
}

func TestOnlySelectedChecksRun(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	report := run(t, pool, &ledger{}, invariant.Options{Only: []string{"stock", "inbox"}})
	if len(report.Checks) != 2 || report.Checks[0].Name != "stock" {
		t.Errorf("got %+v", report.Checks)
	}

	if _, err := audit.New(pool, &ledger{}).Run(t.Context(), invariant.Options{Only: []string{"nonsense"}}); event.KindOf(err) != event.Unknown {
		t.Errorf("got %v", err)
	}
}

func TestAnAuditBlocksNeitherWritersNorProjections(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)

	run(t, pool, gateway, invariant.Options{Progress: func(step, _ int, _ string) {
		if step != 3 {
			return
		}

		modes := pgtest.Value[string](t, pool, `
			SELECT coalesce(string_agg(DISTINCT mode, ' '), '') FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE locktype = 'relation' AND a.datname = current_database() AND pid <> pg_backend_pid()
			  AND backend_type = 'client backend'`) // not autovacuum
		if modes != "AccessShareLock" {
			t.Errorf("the audit holds %s", modes)
		}

		if ids := pgtest.Value[int](t, pool, `
			SELECT count(backend_xid)::int FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); ids > 0 {
			t.Error("the audit has a transaction id, so readers of all events wait for it")
		}
	}})
}

func TestAFailedRefundOfACompletedOrderIsNotAViolation(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)

	execute(t, pool, `
		INSERT INTO events (stream, version, type, data, message_id)
		SELECT e.stream, e.version + n, more.type, '{}', e.message_id
		FROM events e CROSS JOIN (VALUES (1, 'PaymentRefunded'), (2, 'PaymentRefundFailed')) AS more (n, type)
		WHERE e.stream = 'order-paid_0' AND e.type = 'OrderCompleted'`)
	execute(t, pool, `UPDATE orders SET version = version + 2 WHERE id = 'paid_0'`)

	if got := found(run(t, pool, gateway, invariant.Options{})); len(got) > 0 {
		t.Errorf("found %q", got)
	}
}

func TestARefundedSecondCaptureIsNotAViolation(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)

	// Package fulfilment records superfluous captures this way: the payment is the first
	// capture, the others are only in the stream.
	execute(t, pool, `
		INSERT INTO events (stream, version, type, data, message_id)
		SELECT e.stream, e.version + n, more.type, jsonb_build_object('transaction_id', txn), e.message_id
		FROM events e CROSS JOIN (VALUES
			(1, 'PaymentCapturedLate', 'txn_2'), (2, 'PaymentRefunded', 'txn_2'), (3, 'PaymentCapturedLate', 'txn_3'), (4, 'PaymentRefunded', 'txn_3')) AS more (n, type, txn)
		WHERE e.stream = 'order-paid_0' AND e.type = 'OrderCompleted'`)
	execute(t, pool, `UPDATE orders SET version = version + 4 WHERE id = 'paid_0'`)

	if got := found(run(t, pool, gateway, invariant.Options{})); len(got) > 0 {
		t.Errorf("found %q", got)
	}

	// More refunds than captures.
	execute(t, pool, `
		INSERT INTO events (stream, version, type, data, message_id)
		SELECT stream, version + n, type, data, message_id FROM events CROSS JOIN generate_series(1, 2) AS n
		WHERE stream = 'order-paid_0' AND version = (SELECT version FROM orders WHERE id = 'paid_0')`)
	execute(t, pool, `UPDATE orders SET version = version + 2 WHERE id = 'paid_0'`)

	if got := found(run(t, pool, gateway, invariant.Options{})); len(got) != 1 || got[0] != "compensation: paid_0 was refunded more often than it was paid" {
		t.Errorf("found %q", got)
	}
}

// The audit reads Postgres and the payment provider. A message that a broker holds is in
// neither, and the row of a paused consumer waits like any other.
func TestWhatABacklogHoldsCountsAsStuck(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)
	execute(t, pool, `
		INSERT INTO orders (id, status, version, total_amount, currency, lines, updated_at)
		SELECT 'held', 'inventory_reserved', 2, 9.99, 'USD', lines, now() - interval '1 hour' FROM orders WHERE id = 'paid_0';
		INSERT INTO events (stream, version, type, data, message_id) SELECT 'order-held', version, type, data, message_id FROM events WHERE stream = 'order-paid_0' AND version < 3;
		UPDATE stock SET available = available - 2, reserved = reserved + 2 WHERE product_id = 'product_1'`)

	if got := found(run(t, pool, gateway, invariant.Options{})); len(got) != 1 ||
		got[0] != "in-flight: held has been inventory_reserved for too long, and no message about it is pending" {
		t.Errorf("its message is at the broker: found %q", got)
	}

	if got := found(run(t, pool, gateway, invariant.Options{Older: 2 * time.Hour})); len(got) > 0 {
		t.Errorf("with --older 2h: found %q", got)
	}

	execute(t, pool, `
		INSERT INTO paused_consumers (consumer, who, why) VALUES ('fulfilment.charge', 'ann', 'maintenance');
		INSERT INTO outbox (seq, shard, topic, message_id, key, correlation_id, payload, created_at) OVERRIDING SYSTEM VALUE
		SELECT 1000000, 0, 'payments.requested', id, 'held', id, '', now() - interval '1 hour' FROM gen_random_uuid() AS id`)

	if got := found(run(t, pool, gateway, invariant.Options{})); len(got) != 1 || !strings.HasPrefix(got[0], "outbox: 1000000 to payments.requested: waiting since") {
		t.Errorf("its consumer is paused on the embedded broker: found %q", got)
	}
}

// Without webhooks nobody reports that a refund has failed after it had succeeded, or
// that a part of it has.
func TestARefundThatFailedLaterIsFound(t *testing.T) {
	t.Parallel()

	pool, gateway := healthy(t)
	execute(t, pool, `UPDATE payments SET status = 'refunded', refund_id = 're', refunded_at = now() - interval '1 day' WHERE order_id = 'paid_0'`)

	for refunded, want := range map[string]string{
		"9.99": "", "4": "ledger: paid_0 is recorded as refunded, but the gateway refunded 4 of 9.99 USD",
		"0": "ledger: paid_0 is recorded as refunded, but the gateway refunded 0 of 9.99 USD",
	} {
		for i := range gateway.entries {
			if gateway.entries[i].OrderID == "paid_0" {
				gateway.entries[i].Refunded = money.MustParse(refunded)
			}
		}

		if got := strings.Join(found(run(t, pool, gateway, invariant.Options{Only: []string{"ledger"}})), ", "); got != want {
			t.Errorf("%s refunded: found %q, expected %q", refunded, got, want)
		}
	}
}
