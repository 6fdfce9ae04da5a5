package postgres_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// TestAPipelineIsOneTransaction: its first statements, those in the middle and the last
// ones are committed together or not at all, and its connection can be used again.
func TestAPipelineIsOneTransaction(t *testing.T) {
	t.Parallel()

	failure := errors.New("the handler failed")

	insert := func(id string) *pgx.Batch {
		batch := &pgx.Batch{}
		postgres.Queue(batch, "inserting "+id, `INSERT INTO notes (id) VALUES ($1)`, id)

		return batch
	}

	write := func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO notes (id) VALUES ('middle')`)

		return err
	}

	for name, c := range map[string]struct {
		first string
		fn    func(ctx context.Context, tx pgx.Tx) (*pgx.Batch, error)
		want  string // an error
	}{
		"without an error": {"first", func(ctx context.Context, tx pgx.Tx) (*pgx.Batch, error) {
			return insert("last"), write(ctx, tx)
		}, ""},
		"the first statement fails": {"old", func(context.Context, pgx.Tx) (*pgx.Batch, error) {
			panic("called although the first statement failed")
		}, `inserting old: ERROR: duplicate key value violates unique constraint "notes_pkey" (SQLSTATE 23505)`},
		"the function fails": {"first", func(ctx context.Context, tx pgx.Tx) (*pgx.Batch, error) {
			return insert("last"), errors.Join(write(ctx, tx), failure)
		}, failure.Error()},
		"the function ends the transaction": {"first", func(ctx context.Context, tx pgx.Tx) (*pgx.Batch, error) {
			return insert("last"), tx.Rollback(ctx)
		}, "committing transaction: " + pgx.ErrTxClosed.Error()},
		"a statement ends the transaction": {"first", func(ctx context.Context, tx pgx.Tx) (*pgx.Batch, error) {
			_, err := tx.Exec(ctx, `ROLLBACK`)

			return insert("last"), err
		}, "committing transaction: " + pgx.ErrTxClosed.Error()},
		"the last statement fails": {"first", func(ctx context.Context, tx pgx.Tx) (*pgx.Batch, error) {
			return insert("old"), write(ctx, tx)
		}, `inserting old: ERROR: duplicate key value violates unique constraint "notes_pkey" (SQLSTATE 23505)`},
		"an error is swallowed": {"first", func(ctx context.Context, tx pgx.Tx) (*pgx.Batch, error) {
			_, _ = tx.Exec(ctx, `INSERT INTO notes (id) VALUES ('old')`)

			return nil, nil //nolint:nilnil // no last statements
		}, "committing transaction: " + pgx.ErrTxCommitRollback.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			pool := pgtest.New(t)
			exec(t, pool, `CREATE TABLE notes (id text PRIMARY KEY)`)
			exec(t, pool, `INSERT INTO notes (id) VALUES ('old')`)

			err := postgres.InPipeline(t.Context(), pool, insert(c.first), func(tx pgx.Tx) (*pgx.Batch, error) {
				return c.fn(t.Context(), tx)
			})

			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want != "" && (err == nil || err.Error() != c.want):
				t.Errorf("got  %v\nwant %s", err, c.want)
			}

			want := 1
			if c.want == "" {
				want = 4
			}

			if n := count(t, pool); n != want {
				t.Errorf("%d notes are stored, expected %d", n, want)
			}

			if n := pool.Stat().NewConnsCount(); n != 1 {
				t.Errorf("%d connections were made, expected one", n)
			}
		})
	}
}

// TestAPanicInAPipelineCommitsNothing: and its connection is not used again.
func TestAPanicInAPipelineCommitsNothing(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	exec(t, pool, `CREATE TABLE notes (id text PRIMARY KEY)`)

	first := &pgx.Batch{}
	first.Queue(`INSERT INTO notes (id) VALUES ('first')`)

	func() {
		defer func() { _ = recover() }()

		_ = postgres.InPipeline(t.Context(), pool, first, func(pgx.Tx) (*pgx.Batch, error) { panic("a bug") })
	}()

	if n := count(t, pool); n != 0 {
		t.Errorf("%d notes are stored", n)
	}

	if n := pool.Stat().NewConnsCount(); n != 2 {
		t.Errorf("%d connections were made, expected another after the panic", n)
	}
}

func count(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()

	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM notes`).Scan(&n); err != nil {
		t.Fatal(err)
	}

	return n
}
