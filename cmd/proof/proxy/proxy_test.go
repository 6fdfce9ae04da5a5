package proxy_test

import (
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/cmd/proof/proxy"
	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// start starts a proxy in front of a database with a table, and returns its address.
func start(t *testing.T) (p *proxy.Proxy, address string) {
	t.Helper()

	u, err := url.Parse(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}

	port, err := server.FreePort()
	if err != nil {
		t.Fatal(err)
	}

	if p, err = proxy.Start(port, u.Host, "postgres"); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(p.Close)

	u.Host = p.Address()

	conn := connect(t, u.String())
	if _, err := conn.Exec(t.Context(), `CREATE TABLE t (n int)`); err != nil {
		t.Fatal(err)
	}

	return p, u.String()
}

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()

	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = conn.Close(t.Context()) })

	return conn
}

func insert(t *testing.T, conn *pgx.Conn) error {
	t.Helper()

	return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `INSERT INTO t VALUES (1)`)

		return err
	})
}

func TestAnAnswerToCommitIsLostAfterTheCommit(t *testing.T) {
	t.Parallel()

	p, address := start(t)

	p.Drop(1)

	if err := insert(t, connect(t, address)); err == nil {
		t.Error("the answer was not dropped")
	}

	conn := connect(t, address)
	if n := pgtest.Value[int](t, conn, `SELECT count(*)::int FROM t`); n != 1 || p.Dropped() != 1 {
		t.Errorf("%d rows, %d answers dropped", n, p.Dropped())
	}

	if err := insert(t, conn); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

func TestAConnectionWorksAgainOnceItsFaultsAreRemoved(t *testing.T) {
	t.Parallel()

	for _, toxic := range proxy.Toxics {
		t.Run(toxic.Type, func(t *testing.T) {
			t.Parallel()

			p, address := start(t)

			if err := p.Add(toxic, true); err != nil {
				t.Fatal(err)
			}

			if err := p.Heal(); err != nil {
				t.Fatal(err)
			}

			if err := insert(t, connect(t, address)); err != nil {
				t.Error(err)
			}
		})
	}
}
