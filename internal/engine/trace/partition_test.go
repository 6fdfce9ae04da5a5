package trace_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/trace"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Migration 10 creates the bloom filters for partitions to come. Those that exist have
// none: a conversation in them is found, by reading them as a whole.
func TestPartitionsOlderThanTheBloomFiltersAreReadAsAWhole(t *testing.T) {
	t.Parallel()

	const rows = 200

	pool := single(t)
	now := time.Now()
	exec := func(sql string) {
		t.Helper()

		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	ensure := func(at time.Time) {
		t.Helper()

		if err := inbox.Partitions.Ensure(t.Context(), pool, at); err != nil {
			t.Fatal(err)
		}
	}
	// read finds a conversation, and returns how many rows it reads of partitions as wholes.
	read := func(id uuid.UUID) int64 {
		t.Helper()

		const sum = `SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'inbox%'`

		exec(`SELECT pg_stat_force_next_flush()`)

		before := pgtest.Value[int64](t, pool, sum)

		if found, err := trace.Find(t.Context(), pool, id); err != nil || len(found) != 1 || found[0].ID != id {
			t.Fatalf("found %v, %v", found, err)
		}

		exec(`SELECT pg_stat_force_next_flush()`)

		return pgtest.Value[int64](t, pool, sum) - before
	}

	ensure(now)
	exec(`DROP INDEX inbox_conversation`)
	exec(`CREATE INDEX inbox_conversation ON ONLY inbox
		USING brin (message_id uuid_bloom_ops (n_distinct_per_range = 2500), correlation_id uuid_bloom_ops (n_distinct_per_range = 2500))
		WITH (pages_per_range = 32, autosummarize = on)`)

	ids := make([]inbox.Entry, rows)
	for i := range ids {
		ids[i] = inbox.Entry{ID: event.NewID()}
	}

	batch := &pgx.Batch{}
	inbox.ClaimNew(batch, "writer", ids)

	if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
		t.Fatal(err)
	}

	if n := read(ids[0].ID); n < rows {
		t.Errorf("read %d rows of old partitions, expected all %d", n, rows)
	}

	// The partitions that are created from now on.
	exec(`CREATE TABLE kept AS SELECT * FROM inbox`)
	exec(`DO $$ DECLARE p regclass; BEGIN
		FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'inbox'::regclass AND inhrelid <> 'inbox_default'::regclass LOOP
			EXECUTE 'DROP TABLE ' || p;
		END LOOP; END $$`)
	ensure(now)
	exec(`INSERT INTO inbox SELECT * FROM kept`)

	if n := read(ids[0].ID); n >= rows {
		t.Errorf("read %d rows of new partitions as a whole", n)
	}
}

// single returns a pool with one connection, whose statistics are those of the test.
func single(t *testing.T) *pgxpool.Pool {
	t.Helper()

	pool, release, err := postgres.NewPool(postgres.Config{URL: postgres.Secret(pgtest.URL(t)), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(release)

	return pool
}
