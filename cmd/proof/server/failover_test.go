package server_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// TestAFailoverKeepsWhatWasCommitted fails over twice while rows are written: each row
// whose COMMIT was answered is there, and meanwhile the server takes no writes.
func TestAFailoverKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()

	dir, err := server.NewDir()
	if err != nil {
		t.Fatal(err)
	}

	p, err := server.StartPostgres(t.Context(), dir, "fsync=off")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = errors.Join(p.Kill(), os.RemoveAll(dir)) })

	db, err := pgxpool.New(t.Context(), p.URL("millrace"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()

	if _, err := db.Exec(t.Context(), `CREATE TABLE written (n integer PRIMARY KEY)`); err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	written, refused, ended := 0, 0, make(chan struct{})

	go func() {
		defer close(ended)

		for n := 0; ctx.Err() == nil; n++ {
			_, err := db.Exec(context.WithoutCancel(ctx), `INSERT INTO written VALUES ($1)`, n)
			switch {
			case err == nil:
				written++
			case isReadOnly(err):
				refused++
			}
		}
	}()

	for range 2 {
		if err := p.Failover(t.Context(), 100*time.Millisecond); err != nil {
			t.Error(err)
		}
	}

	stop()
	<-ended

	rows, err := db.Query(t.Context(), `SELECT count(*) FROM written`)
	if err != nil {
		t.Fatal(err)
	}

	found, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
	if err != nil || found < written || written == 0 || refused == 0 {
		t.Errorf("%d rows, %v; %d were written, and %d refused while the server took no writes", found, err, written, refused)
	}
}

// isReadOnly reports whether a server that follows another one refused a write.
func isReadOnly(err error) bool {
	refusal, ok := errors.AsType[*pgconn.PgError](err)

	return ok && refusal.Code == "25006"
}
