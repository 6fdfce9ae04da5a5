package pgtest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// growth is the number of rows in a table that has grown.
const growth = 20_000

// LooksUpByKey checks that a function that handles a few keys of a large table reads
// only a few of its rows. It tries a database that was never analyzed, one that was
// analyzed while the table was small, because plans prepared then are still in use, and
// one with current statistics. insert adds rows with the given numbers to the tables;
// lookUp handles the row with number 1.
func LooksUpByKey(t *testing.T, tables []string, insert func(t *testing.T, tx pgx.Tx, from, to int), lookUp func(t *testing.T, tx pgx.Tx)) {
	t.Helper()

	for _, state := range []struct {
		name  string
		small bool
		large bool
	}{{name: "never analyzed"}, {name: "analyzed while small", small: true}, {name: "analyzed", large: true}} {
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			t.Run(state.name+", "+mode, func(t *testing.T) {
				t.Parallel()

				conn := single(t)
				do := func(fn func(tx pgx.Tx)) { inTx(t, conn, fn) }
				run := func(sql string) { do(func(tx pgx.Tx) { execute(t, tx, sql) }) }
				each := func(command string) {
					for _, table := range tables {
						run(command + table)
					}
				}

				execute(t, conn, "SET plan_cache_mode = "+mode)

				for _, table := range tables {
					run("ALTER TABLE " + table + " SET (autovacuum_enabled = false)")
				}

				do(func(tx pgx.Tx) { insert(t, tx, 1, 50) })

				if state.small {
					each("ANALYZE ")
				}

				do(func(tx pgx.Tx) { lookUp(t, tx) }) // prepares the plans
				do(func(tx pgx.Tx) { insert(t, tx, 51, growth) })

				if state.large {
					each("ANALYZE ")
				}

				do(func(tx pgx.Tx) {
					lookUp(t, tx)

					if read := rowsRead(t, tx, tables); read > growth/10 {
						t.Errorf("read %d rows and index entries of %d", read, growth)
					}
				})
			})
		}
	}
}

// single returns a pool with a single connection, with the service's parameters.
func single(t *testing.T) *pgxpool.Pool {
	t.Helper()

	pool, release, err := postgres.NewPool(postgres.Config{URL: postgres.Secret(URL(t)), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(release)

	return pool
}

func inTx(t *testing.T, pool *pgxpool.Pool, fn func(tx pgx.Tx)) {
	t.Helper()

	err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
		fn(tx)

		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, db postgres.Execer, sql string) {
	t.Helper()

	if _, err := db.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// rowsRead returns the number of rows and index entries that the transaction has read
// from tables. Uniqueness checks are not counted.
func rowsRead(t *testing.T, tx pgx.Tx, tables []string) int64 {
	t.Helper()

	return Value[int64](t, tx, `
		SELECT sum(pg_stat_get_xact_tuples_returned(c.oid))::bigint
		FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
		WHERE coalesce(i.indrelid, c.oid) = ANY(SELECT name::regclass FROM unnest($1::text[]) AS name)`, tables)
}
