package postgres_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

var (
	create = fstest.MapFS{"00001_create.sql": {Data: []byte("-- +goose Up\nCREATE TABLE t (a int);\n")}}
	expand = fstest.MapFS{"00001_create.sql": create["00001_create.sql"], "00002_expand.sql": {Data: []byte("-- +goose Up\nALTER TABLE t ADD COLUMN b int;\n")}}
)

// reading returns a database with table t, and a transaction that has read t and stays
// open, which a migration of t has to wait for.
func reading(t *testing.T) (pool *pgxpool.Pool, end func()) {
	t.Helper()

	pool, release, err := postgres.NewPool(postgres.Config{URL: postgres.Secret(pgtest.EmptyURL(t)), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(release)

	if _, err := postgres.MigrateFrom(t.Context(), pool, create, time.Minute, pgtest.Logger(t)); err != nil {
		t.Fatal(err)
	}

	conn, err := postgres.Connect(t.Context(), pool, "a long report", nil)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = conn.Close(context.Background()) })

	if _, err := conn.Exec(t.Context(), `BEGIN; SELECT FROM t`); err != nil {
		t.Fatal(err)
	}

	return pool, func() {
		if _, err := conn.Exec(t.Context(), `COMMIT`); err != nil {
			t.Error(err)
		}
	}
}

func TestAMigrationThatWaitsForALockLetsOthersPassAndIsRetried(t *testing.T) {
	t.Parallel()

	pool, end := reading(t)

	var log pgtest.Log

	migrated := make(chan error, 1)

	go func() {
		_, err := postgres.MigrateFrom(t.Context(), pool, expand, time.Minute, slog.New(slog.NewTextHandler(&log, nil)))
		migrated <- err
	}()

	pgtest.Eventually(t, "the migration waits", pgtest.LockWaits(t, pool))

	// This statement queues behind the migration.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	if _, err := pool.Exec(ctx, `INSERT INTO t VALUES (1)`); err != nil {
		t.Fatalf("the migration holds up the service: %v", err)
	}

	pgtest.Eventually(t, "the log says who holds up the migration", func() bool { return strings.Contains(log.String(), "a long report") })
	end()

	if err := <-migrated; err != nil {
		t.Fatal(err)
	}

	pgtest.Value[*int](t, pool, `SELECT b FROM t`)
}

func TestAMigrationThatGetsNoLockSaysWhoHoldsIt(t *testing.T) {
	t.Parallel()

	pool, _ := reading(t)

	_, err := postgres.MigrateFrom(t.Context(), pool, expand, time.Nanosecond, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("the migration passed a transaction that reads the table")
	}

	for _, want := range []string{"00002_expand.sql", "a long report", "millrace migrate up"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
}
