package app_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// recovery is how soon work must continue once its cause is gone.
const recovery = 10 * time.Second

// soon waits until condition holds and fails if that takes longer than recovery.
func soon(t *testing.T, what string, condition func() bool) {
	t.Helper()

	started := time.Now()

	pgtest.Eventually(t, what, condition)

	if took := time.Since(started); took > recovery {
		t.Errorf("it took %s until %s, expected at most %s", took, what, recovery)
	}
}

const anOrder = `{"order":{"id":"%","product_id":"product_1","quantity":1,"total_amount":9.99}}`

// place publishes an order.
func place(s *apptest.Service, id string) {
	s.Publish("orders.created", strings.ReplaceAll(anOrder, "%", id))
}

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()

	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = conn.Close(context.Background()) })

	return conn
}

// A primary that has become read-only, as after a failover to another one.
func TestWritesContinueOnceTheDatabaseTakesThemAgain(t *testing.T) {
	t.Parallel()

	address := pgtest.URL(t)
	admin := connect(t, address)
	name := pgtest.Value[string](t, admin, `SELECT current_database()::text`)
	s := apptest.New(t, address)
	s.Run()
	s.Seed()
	place(s, "before")
	s.WaitForOrder("before", "completed")

	if _, err := admin.Exec(t.Context(), `ALTER DATABASE `+name+` SET default_transaction_read_only = on`); err != nil {
		t.Fatal(err)
	}

	pgtest.KillBackends(t, admin)

	// The message is there; nobody can apply it.
	pgtest.Eventually(t, "the service is not ready and says why", func() bool {
		status, checks := readiness(t, s)

		return status == http.StatusServiceUnavailable && strings.Contains(checks["postgres"].Reason, "takes no writes")
	})

	for range 20 {
		if status, checks := readiness(t, s); status != http.StatusServiceUnavailable {
			t.Fatalf("ready while nothing can be applied: %v", checks)
		}
	}

	if _, err := admin.Exec(t.Context(), `ALTER DATABASE `+name+` RESET default_transaction_read_only`); err != nil {
		t.Fatal(err)
	}

	soon(t, "the service is ready", func() bool {
		status, _ := readiness(t, s)

		return status == http.StatusOK
	})
	place(s, "after")
	soon(t, "the order is completed", func() bool {
		details, err := s.Orders.Show(t.Context(), "after")

		return err == nil && details.Status == "completed"
	})
}

func TestTheServiceFollowsAFailover(t *testing.T) {
	t.Parallel()

	primary := pgtest.NewServer(t)
	standby := primary.Standby()

	first, err := url.Parse(primary.URL)
	if err != nil {
		t.Fatal(err)
	}

	second, err := url.Parse(standby.URL)
	if err != nil {
		t.Fatal(err)
	}

	// The standby is first: it must be passed over while it is one.
	first.Host = second.Host + "," + first.Host

	s := apptest.New(t, first.String(), func(c *config.Config) { c.Postgres.MigrateOnStart = true })
	s.Run()
	s.Seed()

	for _, id := range []string{"a", "b", "c"} {
		place(s, id)
	}

	s.WaitForOrder("c", "completed")

	replica := connect(t, standby.URL)
	pgtest.Eventually(t, "the standby has everything", func() bool {
		return pgtest.Value[int](t, replica, `SELECT count(*) FROM orders WHERE status = 'completed'`) == 3 &&
			pgtest.Value[int](t, replica, `SELECT count(*) FROM outbox`) == 0
	})

	primary.Stop()

	if _, err := replica.Exec(t.Context(), `SELECT pg_promote()`); err != nil {
		t.Fatal(err)
	}

	soon(t, "the service is ready", func() bool {
		status, _ := readiness(t, s)

		return status == http.StatusOK
	})
	place(s, "d")
	soon(t, "the order is completed on the new primary", func() bool {
		return pgtest.Value[int](t, replica, `SELECT count(*) FROM orders WHERE id = 'd' AND status = 'completed'`) == 1
	})
}
