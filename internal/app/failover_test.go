package app_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// recovery is the time within which work must resume once the cause of an outage is gone.
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

// The primary becomes read-only, as after a failover to another server.
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

	// The message has arrived, but nothing can apply it.
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

// bothHosts returns a Postgres address with the hosts of two addresses.
func bothHosts(t *testing.T, first, second string) string {
	t.Helper()

	u, err := url.Parse(first)
	if err != nil {
		t.Fatal(err)
	}

	other, err := url.Parse(second)
	if err != nil {
		t.Fatal(err)
	}

	u.Host += "," + other.Host

	return u.String()
}

// steadyOrders places orders until stop is called, and counts those that were committed.
func steadyOrders(t *testing.T, s *apptest.Service) (placed *atomic.Int64, stop func()) {
	t.Helper()

	placed = new(atomic.Int64)
	loading, cancel := context.WithCancel(t.Context())

	var load sync.WaitGroup

	for client := range 4 {
		load.Go(func() {
			for i := 0; loading.Err() == nil; i++ {
				place(s, fmt.Sprintf("%d-%d", client, i)) // tries again until it is committed
				placed.Add(1)
			}
		})
	}

	return placed, func() {
		cancel()
		load.Wait()
	}
}

// Orders keep arriving while the primary crashes and its standby is promoted. The
// standby is synchronous, so it has everything that was committed.
func TestTheServiceFollowsAFailoverUnderLoad(t *testing.T) {
	t.Parallel()

	primary := pgtest.NewServer(t)
	standby := primary.Standby()
	old := connect(t, primary.URL)

	for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`} {
		if _, err := old.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	// The standby comes first: the service must skip it while it is a standby.
	s := apptest.New(t, bothHosts(t, standby.URL, primary.URL), func(c *config.Config) { c.Postgres.MigrateOnStart = true })
	s.Run()

	if err := s.Inventory.Seed(t.Context(), map[string]int64{"product_1": 1_000_000}); err != nil {
		t.Fatal(err)
	}

	placed, stopLoad := steadyOrders(t, s)
	atLeast := func(n int64) func() bool { return func() bool { return placed.Load() >= n } }
	pgtest.Eventually(t, "orders arrive", atLeast(200))
	pgtest.Eventually(t, "commits wait for the standby", func() bool {
		return pgtest.Value[int](t, old, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`) == 1
	})

	replica := connect(t, standby.URL)

	primary.Kill()

	if _, err := replica.Exec(t.Context(), `SELECT pg_promote()`); err != nil {
		t.Fatal(err)
	}

	before := placed.Load()
	soon(t, "orders are taken again", atLeast(before+10))
	soon(t, "the service is ready", func() bool {
		status, _ := readiness(t, s)

		return status == http.StatusOK
	})
	stopLoad()

	pgtest.Eventually(t, "every order that was taken is completed", func() bool {
		return pgtest.Value[int64](t, replica, `SELECT count(*) FROM orders WHERE status = 'completed'`) == placed.Load()
	})
	s.WaitUntilIdle()

	if report, err := s.Audit.Run(t.Context(), invariant.Options{}); err != nil || report.Err() != nil {
		t.Errorf("the audit: %v, %v", report, err)
	}

	t.Logf("%d orders, %d of them before the failover", placed.Load(), before)
}

func TestVerifyFullAcceptsTheServerOfTheCertificateOnly(t *testing.T) {
	t.Parallel()

	server := pgtest.NewServer(t)
	authority := brokertest.NewAuthority(t)
	certificate, key := authority.Issue("postgres") // for 127.0.0.1
	server.Encrypt([]byte(certificate), []byte(key))

	ours, others := brokertest.File(t, authority.Certificate), brokertest.File(t, brokertest.NewAuthority(t).Certificate)

	address := func(host, roots string) string {
		parsed, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}

		parsed.Host = net.JoinHostPort(host, parsed.Port())
		parsed.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {roots}}.Encode()

		return parsed.String()
	}

	s := apptest.New(t, address("127.0.0.1", ours), func(c *config.Config) { c.Postgres.MigrateOnStart = true })
	s.Run()
	s.Seed()
	place(s, "a")
	s.WaitForOrder("a", "completed")

	if plain := apptest.Value[int](s, `
		SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'millrace%' AND NOT ssl`); plain != 0 {
		t.Errorf("%d connections are not encrypted", plain)
	}

	for name, c := range map[string]struct{ address, says string }{
		"another name":      {address("localhost", ours), "localhost"},
		"another authority": {address("127.0.0.1", others), "unknown authority"},
	} {
		err := apptest.New(t, c.address).Pool.Ping(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.says) || !postgres.IsUnavailable(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
