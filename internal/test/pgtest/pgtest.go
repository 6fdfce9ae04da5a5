// Package pgtest gives each test its own Postgres database.
package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/migrations"
)

// variable is the environment variable with the address of the test server.
const variable = "MILLRACE_TEST_DATABASE_URL"

// template is a migrated database to clone, created once per process.
var template = sync.OnceValues(makeTemplate)

// New returns a pool for a migrated, empty database that is dropped when the
// test ends.
func New(tb testing.TB) *pgxpool.Pool {
	tb.Helper()

	pool, err := pgxpool.New(context.Background(), URL(tb))
	if err != nil {
		tb.Fatalf("opening test database: %v", err)
	}

	tb.Cleanup(pool.Close)

	return pool
}

// URL returns the connection string of a migrated, empty database that is
// dropped when the test ends.
func URL(tb testing.TB) string {
	tb.Helper()

	source, err := template()
	if err != nil {
		tb.Fatalf("no database for tests: %v", err)
	}

	return create(tb, source)
}

// EmptyURL returns the connection string of a database that has no schema and is
// dropped when the test ends.
func EmptyURL(tb testing.TB) string {
	tb.Helper()

	return create(tb, "template0")
}

func create(tb testing.TB, source string) string {
	tb.Helper()

	name := "test_" + strings.ToLower(rand.Text())
	if err := exec("CREATE DATABASE " + name + " TEMPLATE " + source); err != nil {
		tb.Fatalf("creating test database: %v", err)
	}

	tb.Cleanup(func() {
		if err := exec("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"); err != nil {
			tb.Errorf("dropping test database: %v", err)
		}
	})

	address, err := named(name)
	if err != nil {
		tb.Fatalf("addressing test database: %v", err)
	}

	return address
}

// KillBackends closes all other connections to db's database, as a server crash would.
func KillBackends(tb testing.TB, db postgres.Execer) {
	tb.Helper()

	_, err := db.Exec(context.Background(), `
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	if err != nil {
		tb.Fatalf("ending connections: %v", err)
	}
}

// LockWaits returns a condition for Eventually that holds while a statement in the
// database is waiting for a lock.
func LockWaits(tb testing.TB, db postgres.Querier) func() bool {
	tb.Helper()

	return func() bool {
		return Value[bool](tb, db, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
	}
}

// Logger returns a logger that writes to the test's log.
func Logger(tb testing.TB) *slog.Logger {
	tb.Helper()

	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// Log is a log that can be read while it is being written.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.text.String()
}

// Eventually polls until the condition holds. After 30 seconds, or as soon as the
// test has failed, it ends the test with a message that says what it was waiting for.
func Eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()

	deadline := time.Now().Add(30 * time.Second)
	for !condition() {
		if tb.Failed() {
			tb.Fatalf("the test has failed; no longer waiting until %s", what)
		}

		if time.Now().After(deadline) {
			tb.Fatalf("timed out waiting until %s", what)
		}

		time.Sleep(5 * time.Millisecond)
	}
}

// Value returns the single value that a query returns.
func Value[T any](tb testing.TB, db postgres.Querier, sql string, args ...any) T {
	tb.Helper()

	rows, err := db.Query(context.Background(), sql, args...)
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}

	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}

	return value
}

// Values returns the rows of a query with one column.
func Values[T any](tb testing.TB, db postgres.Querier, sql string, args ...any) []T {
	tb.Helper()

	list, err := postgres.Collect(context.Background(), db, pgx.RowTo[T], sql, args...)
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}

	return list
}

func makeTemplate() (string, error) {
	server, err := server()
	if err != nil {
		return "", err
	}

	name, err := templateName()
	if err != nil {
		return "", err
	}

	ctx := context.Background()

	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return "", fmt.Errorf("test database: %w\nrun `make test-db` to start it", err)
	}
	defer conn.Close(ctx)

	// Packages are tested concurrently: one process creates the template.
	var exists bool

	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtext($1))`, name); err != nil {
		return "", err
	}

	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)`, name).Scan(&exists)
	if err != nil || exists {
		return name, err
	}

	if err := exec("DROP DATABASE IF EXISTS " + name); err != nil {
		return "", err
	}

	if err := exec("CREATE DATABASE " + name); err != nil {
		return "", err
	}

	if err := migrate(ctx, name); err != nil {
		return "", err
	}

	return name, exec("ALTER DATABASE " + name + " WITH IS_TEMPLATE true")
}

// migrate creates the schema of a database and today's inbox partitions.
func migrate(ctx context.Context, name string) error {
	address, err := named(name)
	if err != nil {
		return err
	}

	pool, err := pgxpool.New(ctx, address)
	if err != nil {
		return err
	}
	defer pool.Close()

	if _, err := postgres.Migrate(ctx, pool, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}

	return inbox.Partitions.Ensure(ctx, pool, time.Now())
}

// templateName returns a name that depends on the schema and, because of the
// partitions, on the day.
func templateName() (string, error) {
	sum := sha256.New()

	err := fs.WalkDir(migrations.FS, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}

		data, err := migrations.FS.ReadFile(path)
		_, _ = sum.Write(data)

		return err
	})

	return fmt.Sprintf("template_%x_%s", sum.Sum(nil)[:4], time.Now().UTC().Format("20060102")), err
}

// server returns the address of the test server.
var server = sync.OnceValues(func() (string, error) {
	address, err := Setting(variable)
	if err == nil && address == "" {
		err = fmt.Errorf("%s is not set and no server is running: run `make test-db`", variable)
	}

	return address, err
})

func named(database string) (string, error) {
	server, err := server()
	if err != nil {
		return "", err
	}

	address, err := url.Parse(server)
	if err != nil {
		return "", fmt.Errorf("%s: %w", variable, err)
	}

	address.Path = "/" + database

	return address.String(), nil
}

// exec runs a statement on the server. It retries while another clone of the same
// template is in progress, because cloning then fails.
func exec(sql string) error {
	server, err := server()
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return fmt.Errorf("test database: %w", err)
	}
	defer conn.Close(ctx)

	for {
		_, err = conn.Exec(ctx, sql)

		var busy *pgconn.PgError
		if !errors.As(err, &busy) || busy.Code != "55006" || ctx.Err() != nil {
			return err
		}

		time.Sleep(20 * time.Millisecond)
	}
}
