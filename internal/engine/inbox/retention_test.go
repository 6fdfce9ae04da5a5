package inbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// idOf returns a UUIDv7 with the given time.
func idOf(at time.Time) uuid.UUID {
	id := event.NewID()
	millis := at.UnixMilli()

	for i := range 6 {
		id[i] = byte(millis >> (40 - 8*i)) //nolint:gosec // takes that byte
	}

	return id
}

func TestPartitionsAreDroppedAfterTheirRetention(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	now := time.Now()
	before := now.AddDate(0, 0, -7)

	for day := range 12 {
		if err := inbox.Partitions.Ensure(t.Context(), pool, now.AddDate(0, 0, -day)); err != nil {
			t.Fatal(err)
		}
	}

	const day = 24 * time.Hour

	messages := []dated{
		{created: 10 * day, applied: 10 * day},
		{created: 9 * day, applied: 9 * day},
		// It was applied long after its creation, so it is kept longer.
		{created: 11 * day, applied: day, kept: true},
		{created: 6 * day, applied: 6 * day, kept: true},
		{kept: true},
		{Entry: inbox.Entry{ID: event.ForeignID("old")}, applied: 8 * day},
		{Entry: inbox.Entry{ID: event.ForeignID("new")}, applied: 6 * day, kept: true},
	}
	for i := range messages {
		messages[i].claim(t, pool, now)
	}

	partitions := func() int {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM pg_inherits WHERE inhparent = 'inbox'::regclass`)
	}
	all := partitions()

	dropped, err := inbox.Partitions.Drop(t.Context(), pool, before)
	if err != nil {
		t.Fatal(err)
	}

	// Of the partitions for 8 to 12 days ago, one has a message that was applied later.
	if dropped != 4 || partitions() != all-4 {
		t.Errorf("dropped %d, %d of %d are left", dropped, partitions(), all)
	}

	deleted, err := inbox.DeleteUndated(t.Context(), pool, before)
	if err != nil || deleted != 1 {
		t.Errorf("deleted %d, %v, expected 1", deleted, err)
	}

	for _, m := range messages {
		got := claim(t, pool, "c", m.Entry)[0]
		if known := got == inbox.Duplicate; known != m.kept {
			t.Errorf("created %s ago, applied %s ago: known %v, expected %v", m.created, m.applied, known, m.kept)
		}
	}
}

// dated is a message from the past. If it has no ID, claim gives it one with the time
// it was created.
type dated struct {
	inbox.Entry

	created, applied time.Duration // ago
	kept             bool          // after a retention of 7 days
}

// claim claims the message as if it had been applied in the past.
func (m *dated) claim(t *testing.T, pool *pgxpool.Pool, now time.Time) {
	t.Helper()

	if m.ID == uuid.Nil {
		m.ID = idOf(now.Add(-m.created))
	}

	claim(t, pool, "c", m.Entry)

	if _, err := pool.Exec(t.Context(), `UPDATE inbox SET applied_at = $2 WHERE message_id = $1`, m.ID, now.Add(-m.applied)); err != nil {
		t.Fatal(err)
	}
}

func TestDroppingAPartitionBlocksNoReaders(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	ctx := t.Context()
	now := time.Now()

	if err := inbox.Partitions.Ensure(ctx, pool, now.AddDate(0, 0, -9)); err != nil {
		t.Fatal(err)
	}

	reader, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}

	if _, err := reader.Exec(ctx, `SELECT count(*) FROM inbox`); err != nil {
		t.Fatal(err)
	}

	started := time.Now()

	if _, err := inbox.Partitions.Drop(ctx, pool, now.AddDate(0, 0, -1)); !postgres.IsUnavailable(err) {
		t.Errorf("got %v, expected a timeout", err)
	}

	if err := inbox.Partitions.Ensure(ctx, pool, now.AddDate(0, 0, 30)); !postgres.IsUnavailable(err) {
		t.Errorf("got %v, expected a timeout", err)
	}

	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("it would have blocked others for %s", took)
	}

	claim(t, pool, "c", inbox.Entry{ID: event.NewID()})

	if err := reader.Rollback(ctx); err != nil {
		t.Fatal(err)
	}

	if dropped, err := inbox.Partitions.Drop(ctx, pool, now.AddDate(0, 0, -1)); err != nil || dropped == 0 {
		t.Errorf("dropped %d, %v", dropped, err)
	}
}

func TestOldRowsAreFoundOnEveryPage(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	// Fill more pages than are scanned at once.
	_, err := pool.Exec(t.Context(), `
		INSERT INTO inbox (consumer, message_id, day, fingerprint, applied_at)
		SELECT 'c', gen_random_uuid(), '1970-01-01', n, now() - n % 2 * interval '10 days' FROM generate_series(1, 40000) AS n`)
	if err != nil {
		t.Fatal(err)
	}

	deleted, err := inbox.DeleteUndated(t.Context(), pool, time.Now().AddDate(0, 0, -7))
	if left := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM inbox`); err != nil || deleted != 20_000 || left != 20_000 {
		t.Errorf("deleted %d, left %d, %v", deleted, left, err)
	}
}

func TestRetentionHasAMinimum(t *testing.T) {
	t.Parallel()

	for retention, valid := range map[time.Duration]bool{0: false, time.Minute: false, time.Hour: true, inbox.DefaultConfig().Retention: true} {
		if err := (inbox.Config{Retention: retention}).Validate(); (err == nil) != valid {
			t.Errorf("%s: %v", fmt.Sprint(retention), err)
		}
	}
}
