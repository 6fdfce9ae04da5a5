package postgres_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// later is a day without partitions.
var later = time.Now().UTC().AddDate(1, 0, 0)

func waitsForLock(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()

	pgtest.Eventually(t, "the other replica waits for the lock", func() bool {
		return pgtest.Value[bool](t, pool, `
			SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
				WHERE d.datname = current_database() AND locktype = 'advisory' AND NOT granted)`)
	})
}

func TestAPartitionThatAnotherReplicaHasJustMadeIsUsed(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	partitions := postgres.DailyPartitions{Table: "inbox", Written: "applied_at"}

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()

	if err := postgres.LockInTx(t.Context(), tx, postgres.LockPartitions, "inbox"); err != nil {
		t.Fatal(err)
	}

	ensured := make(chan error, 1)

	go func() { ensured <- partitions.Ensure(t.Context(), pool, later) }()

	waitsForLock(t, pool)

	first := later.AddDate(0, 0, -1)
	if _, err := tx.Exec(t.Context(), "CREATE TABLE inbox_"+first.Format("20060102")+" PARTITION OF inbox FOR VALUES FROM ('"+
		first.Format(time.DateOnly)+"') TO ('"+later.Format(time.DateOnly)+"')"); err != nil {
		t.Fatal(err)
	}

	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	if err := <-ensured; err != nil {
		t.Error(err)
	}
}

// TestInsertionsIntoANewPartitionMaintainNoSummary: a bloom filter in the summary of the first
// pages would be written again for each row.
func TestInsertionsIntoANewPartitionMaintainNoSummary(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	if err := (postgres.DailyPartitions{Table: "inbox", Written: "applied_at"}).Ensure(t.Context(), pool, later); err != nil {
		t.Fatal(err)
	}

	partition := "inbox_" + later.Format("20060102")

	_, err := pool.Exec(t.Context(), `INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES ('c', gen_random_uuid(), $1, 0)`, later)
	if err != nil {
		t.Fatal(err)
	}

	// The number of ranges that had no summary.
	made := pgtest.Value[int](t, pool, `
		SELECT brin_summarize_range(i.indexrelid, 0) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
		WHERE i.indrelid = $1::regclass AND a.amname = 'brin'`, partition)
	if made != 1 {
		t.Error("the first range of a new partition has a summary")
	}
}

func TestAPartitionThatAnotherReplicaHasJustDroppedIsGone(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	partitions := postgres.DailyPartitions{Table: "inbox", Written: "applied_at"}
	past := time.Now().UTC().AddDate(-1, 0, 0)

	if err := partitions.Ensure(t.Context(), pool, past); err != nil {
		t.Fatal(err)
	}

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()

	if err := postgres.LockInTx(t.Context(), tx, postgres.LockPartitions, "inbox"); err != nil {
		t.Fatal(err)
	}

	type result struct {
		dropped int64
		err     error
	}

	dropped := make(chan result, 1)

	go func() {
		n, err := partitions.Drop(t.Context(), pool, past.AddDate(0, 0, 1))
		dropped <- result{n, err}
	}()

	waitsForLock(t, pool)

	for _, day := range []time.Time{past.AddDate(0, 0, -1), past} {
		if _, err := tx.Exec(t.Context(), "DROP TABLE inbox_"+day.Format("20060102")); err != nil {
			t.Fatal(err)
		}
	}

	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	if got := <-dropped; got.err != nil || got.dropped != 0 {
		t.Errorf("dropped %d, %v", got.dropped, got.err)
	}
}
