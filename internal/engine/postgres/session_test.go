package postgres_test

import (
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// open returns the service's pool for the database at address.
func open(t *testing.T, address string) *pgxpool.Pool {
	t.Helper()

	pool, release, err := postgres.NewPool(postgres.Config{URL: postgres.Secret(address), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(release)

	return pool
}

// with adds a parameter to a connection string.
func with(t *testing.T, address, name, value string) string {
	t.Helper()

	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}

	query := parsed.Query()
	query.Set(name, value)
	parsed.RawQuery = query.Encode()

	return parsed.String()
}

func exec(t *testing.T, db postgres.Execer, sql string) {
	t.Helper()

	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// alter sets a parameter for all later sessions of a test's database.
func alter(t *testing.T, db interface {
	postgres.Execer
	postgres.Querier
}, setting string,
) {
	t.Helper()
	exec(t, db, `ALTER DATABASE `+pgtest.Value[string](t, db, `SELECT current_database()::text`)+` `+setting)
}

func TestSettingsOfTheDatabaseDoNotReachSessions(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		name, database, url, want string
	}{
		{name: "timezone", database: "Asia/Kathmandu", want: "UTC"},
		{name: "DateStyle", database: "SQL, DMY", want: "ISO, DMY"},
		{name: "default_transaction_isolation", database: "serializable", want: "read committed"},
		{name: "statement_timeout", database: "3s", want: "0"},
		{name: "statement_timeout", database: "3s", url: "1min", want: "1min"},
		{name: "lock_timeout", database: "3s", want: "0"},
		{name: "idle_session_timeout", database: "3s", want: "0"},
		{name: "transaction_timeout", database: "3s", want: "0"},
		{name: "idle_in_transaction_session_timeout", database: "3s", want: "1min"},
		{name: "synchronous_commit", database: "off", want: "on"},
		{name: "synchronous_commit", database: "remote_apply", want: "remote_apply"},
		{name: "synchronous_commit", database: "on", url: "off", want: "off"},
		{name: "plan_cache_mode", database: "force_custom_plan", want: "force_generic_plan"},
		{name: "plan_cache_mode", database: "auto", url: "force_custom_plan", want: "force_custom_plan"},
		{name: "search_path", database: "elsewhere", want: "elsewhere"},
		{name: "search_path", database: "elsewhere", url: "public", want: "public"},
		{name: "application_name", database: "other", want: "millrace"},
	} {
		t.Run(c.name+"="+c.database+" "+c.url, func(t *testing.T) {
			t.Parallel()

			address := pgtest.URL(t)

			admin := open(t, address)
			if c.name == "transaction_timeout" && pgtest.Value[int](t, admin, `SELECT current_setting('server_version_num')::int`) < 170000 {
				t.Skip("this version of Postgres does not have it")
			}

			alter(t, admin, `SET `+c.name+` = '`+c.database+`'`)

			if c.url != "" {
				address = with(t, address, c.name, c.url)
			}

			if got := pgtest.Value[string](t, open(t, address), `SHOW `+c.name); got != c.want {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestStatementsArePlannedOnce: the length of an array changes the estimated cost, so Postgres
// would plan a statement with an array each time.
func TestStatementsArePlannedOnce(t *testing.T) {
	t.Parallel()

	tx, err := open(t, pgtest.URL(t)).Begin(t.Context()) // one session
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()

	const lookUp = `SELECT seq FROM outbox CROSS JOIN unnest($1::bigint[]) AS n WHERE seq = n`

	for range 10 {
		if _, err := tx.Exec(t.Context(), lookUp, []int64{1, 2}); err != nil {
			t.Fatal(err)
		}
	}

	if planned := pgtest.Value[int64](t, tx, `SELECT custom_plans FROM pg_prepared_statements WHERE statement = $1`, lookUp); planned != 0 {
		t.Errorf("planned %d times for its values", planned)
	}
}

func TestAnUnknownParameterIsAnError(t *testing.T) {
	t.Parallel()

	if err := open(t, with(t, pgtest.URL(t), "no_such_parameter", "1s")).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "no_such_parameter") {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsThatTakeNoWritesAreRefused(t *testing.T) {
	t.Parallel()

	address := pgtest.URL(t)
	admin := open(t, address)
	alter(t, admin, `SET default_transaction_read_only = on`)

	pool := open(t, address)

	err := pool.Ping(t.Context())
	if err == nil || !strings.Contains(err.Error(), "takes no writes") || !postgres.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}

	alter(t, admin, `RESET default_transaction_read_only`)

	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("after the reset: %v", err)
	}
}

func TestTheExpectedFormIsNotHidden(t *testing.T) {
	t.Parallel()

	for _, address := range []string{"", "postgres://host:5432/database?connect_timeout=abc", "nonsense"} {
		err := postgres.Config{URL: postgres.Secret(address), MaxConns: 4}.Validate()
		if err == nil || scrub.Text(err.Error()) != err.Error() || !strings.Contains(err.Error(), "postgres://host:5432/database") {
			t.Errorf("%q: got %v", address, err)
		}
	}
}

func TestReadOnlyInTheURLDecides(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ database, url, says string }{
		{"off", "on", "takes no writes: default_transaction_read_only is on"},
		{"off", "true", "or postgres.url"},
		{"on", "off", ""},
	} {
		address := pgtest.URL(t)
		alter(t, open(t, address), `SET default_transaction_read_only = `+c.database)

		err := open(t, with(t, address, "default_transaction_read_only", c.url)).Ping(t.Context())
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s in the database, %s in the URL: got %v, expected %q", c.database, c.url, err, c.says)
		}
	}
}

// A server that stops accepting writes says so with its next response, and only new
// connections may reach a new primary.
func TestConnectionsThatCanNoLongerWriteAreClosed(t *testing.T) {
	t.Parallel()

	pool := open(t, pgtest.URL(t))

	for name, sql := range map[string]string{
		"the server reports it": `SET default_transaction_read_only = on`,
		"a write fails":         `DO $$ BEGIN SET transaction_read_only = on; CREATE TABLE never (); END $$`,
	} {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		pid := conn.Conn().PgConn().PID()
		_, err = conn.Exec(t.Context(), sql)
		conn.Release()

		if err != nil && !postgres.IsUnavailable(err) {
			t.Errorf("%s: %v", name, err)
		}

		if got := pgtest.Value[int](t, pool, `SELECT pg_backend_pid()`); got == int(pid) {
			t.Errorf("%s: the connection is still in use", name)
		}
	}
}

func TestTheNextHostIsTried(t *testing.T) {
	t.Parallel()

	address := pgtest.URL(t)

	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}

	several := strings.Replace(address, parsed.Host, "127.0.0.1:1,"+parsed.Host, 1)
	if err := (postgres.Config{URL: postgres.Secret(several), MaxConns: 4}).Validate(); err != nil {
		t.Fatal(err)
	}

	if err := open(t, several).Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOnlyUTF8IsAccepted(t *testing.T) {
	t.Parallel()

	address := pgtest.URL(t)
	admin := open(t, address)

	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		name := pgtest.Value[string](t, admin, `SELECT current_database()::text`) + strings.ToLower(encoding)
		exec(t, admin, `CREATE DATABASE `+name+` ENCODING '`+encoding+`' LOCALE 'C' TEMPLATE template0`)

		parsed, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}

		parsed.Path = "/" + name
		pool := open(t, parsed.String())
		err = postgres.Wait(t.Context(), pool, pgtest.Logger(t), func(error) {})
		pool.Close()

		if setup, ok := errors.AsType[*postgres.SetupError](err); !ok || !strings.Contains(setup.Problem, "encoding "+encoding) {
			t.Errorf("%s: got %v", encoding, err)
		}

		exec(t, admin, `DROP DATABASE `+name)
	}
}

// locksHold checks that a lock keeps others out while it is held.
func locksHold(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()

	if err := postgres.Wait(t.Context(), pool, pgtest.Logger(t), func(error) {}); err != nil {
		t.Fatal(err)
	}

	err := postgres.TryLock(t.Context(), pool, postgres.LockUpkeep, "", func() error {
		for range 3 {
			if err := postgres.TryLock(t.Context(), pool, postgres.LockUpkeep, "", func() error { return nil }); !errors.Is(err, postgres.ErrLocked) {
				t.Errorf("the lock does not hold: %v", err)
			}
		}

		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAPoolerOfSessionsWorks(t *testing.T) {
	t.Parallel()

	pool := open(t, with(t, pgtest.Pooled(t, pgtest.URL(t), "session"), "search_path", "public"))

	locksHold(t, pool)

	if got := pgtest.Value[string](t, pool, `SHOW idle_in_transaction_session_timeout`); got != "1min" {
		t.Errorf("idle_in_transaction_session_timeout is %s", got)
	}
}

func TestAPoolerThatSharesSessionsIsRefused(t *testing.T) {
	t.Parallel()

	for _, mode := range []string{"transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()

			direct := pgtest.URL(t)
			pooled := pgtest.Pooled(t, direct, mode)

			err := postgres.Wait(t.Context(), open(t, pooled), pgtest.Logger(t), func(error) {})
			if setup, ok := errors.AsType[*postgres.SetupError](err); !ok || !strings.Contains(setup.Problem, "pool_mode = session") {
				t.Fatalf("got %v", err)
			}

			// Other clients of the pooler get a session that this one left unchanged.
			conn, err := pgconn.Connect(t.Context(), pooled)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())

			results, err := conn.Exec(t.Context(), `SELECT current_setting('idle_in_transaction_session_timeout')`).ReadAll()
			if err != nil || string(results[0].Rows[0][0]) != "0" {
				t.Errorf("got %v, %v", results, err)
			}

			if n := pgtest.Value[int](t, open(t, direct), `
				SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 0 {
				t.Errorf("%d advisory locks are left", n)
			}
		})
	}
}

func TestSharedSessionsWorkWithADirectAddress(t *testing.T) {
	t.Parallel()

	direct := pgtest.URL(t)
	pooled := pgtest.SharedSessions(t, direct)

	// Pool settings in an address must not be sent to the server.
	own := with(t, direct, "pool_max_conns", "3")

	pool, release, err := postgres.NewPool(postgres.Config{URL: postgres.Secret(pooled), DirectURL: postgres.Secret(own), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer release()

	locksHold(t, pool)

	// Run statements with arguments while the session changes between them.
	var clients sync.WaitGroup

	for client := range 8 {
		clients.Go(func() {
			for i := range 50 {
				err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
					if got := pgtest.Value[int](t, tx, `SELECT $1::int + $2::int`, client, i); got != client+i {
						t.Errorf("got %d", got)
					}

					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}

	clients.Wait()
}

func TestAPoolerOfStatementsIsRefusedWithADirectAddress(t *testing.T) {
	t.Parallel()

	direct := pgtest.URL(t)

	pool, release, err := postgres.NewPool(postgres.Config{
		URL: postgres.Secret(pgtest.Pooled(t, direct, "statement")), DirectURL: postgres.Secret(direct), MaxConns: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer release()

	err = postgres.Wait(t.Context(), pool, pgtest.Logger(t), func(error) {})
	if setup, ok := errors.AsType[*postgres.SetupError](err); !ok || !strings.Contains(setup.Problem, "pool_mode = statement") {
		t.Errorf("got %v", err)
	}
}

func TestTheDirectAddressMustNotShareSessions(t *testing.T) {
	t.Parallel()

	pool, release, err := postgres.NewPool(postgres.Config{
		URL: postgres.Secret(pgtest.URL(t)), DirectURL: postgres.Secret(pgtest.Pooled(t, pgtest.URL(t), "transaction")), MaxConns: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer release()

	err = postgres.TryLock(t.Context(), pool, postgres.LockUpkeep, "", func() error { return nil })
	if setup, ok := errors.AsType[*postgres.SetupError](err); !ok || !strings.Contains(setup.Problem, "direct_url") {
		t.Errorf("got %v", err)
	}
}

func TestADedicatedConnectionHasItsOwnSettings(t *testing.T) {
	t.Parallel()

	pool := open(t, pgtest.URL(t))

	conn, err := postgres.Connect(t.Context(), pool, "millrace test", map[string]string{"synchronous_commit": "off", "enable_sort": "off"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())

	got := pgtest.Value[string](t, conn, `SELECT concat_ws(', ', current_setting('application_name'), current_setting('synchronous_commit'), current_setting('timezone'), current_setting('enable_sort'))`)
	if got != "millrace test, off, UTC, off" {
		t.Errorf("got %s", got)
	}
}
