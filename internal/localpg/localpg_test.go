package localpg_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/localpg"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func start(t *testing.T, dir string) *localpg.Server {
	t.Helper()

	server, err := localpg.Start(t.Context(), dir, localpg.Options{Settings: map[string]string{"fsync": "off"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}

	return server
}

// directory returns the directory of a new server, which is removed after the test. It is not
// in t.TempDir: for root, Postgres's user cannot enter that, so the server would use another
// directory.
func directory(t *testing.T) string {
	t.Helper()

	parent, err := os.MkdirTemp("", "localpg-*") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})

	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}

	return filepath.Join(parent, "postgres")
}

func query(t *testing.T, server *localpg.Server, sql string) string {
	t.Helper()

	ctx := context.Background()

	conn, err := pgx.Connect(ctx, server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)

	rows, err := conn.Query(ctx, sql)
	if err != nil {
		t.Fatal(err)
	}

	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}

	return strings.Join(values, " ")
}

func TestDataSurvivesStopsAndCrashes(t *testing.T) {
	t.Parallel()

	dir := directory(t)
	first := start(t, dir)

	t.Cleanup(func() {
		if err := first.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})

	query(t, first, `CREATE TABLE kept AS SELECT 'kept' AS text`)

	if adopted := start(t, dir); adopted.URL() != first.URL() || query(t, adopted, `SELECT text FROM kept`) != "kept" {
		t.Errorf("a running server was not adopted: %s", adopted.URL())
	}

	stopOnceUnused(t, first)

	if got := query(t, start(t, dir), `SELECT text FROM kept`); got != "kept" {
		t.Errorf("after a stop: got %q", got)
	}

	if got := query(t, startAfterCrash(t, dir), `SELECT text FROM kept`); got != "kept" {
		t.Errorf("after a crash: got %q", got)
	}
}

// stopOnceUnused checks that a server is stopped only when nobody else is connected: a second
// `millrace dev` in a folder must not take the database from the first.
func stopOnceUnused(t *testing.T, server *localpg.Server) {
	t.Helper()

	other, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}

	if used, err := server.StopUnlessUsed(t.Context()); !used || err != nil {
		t.Fatalf("used: %t, %v", used, err)
	}

	if err := other.Ping(t.Context()); err != nil {
		t.Fatalf("the other connection is lost: %v", err)
	}

	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	if used, err := server.StopUnlessUsed(t.Context()); used || err != nil {
		t.Fatalf("used: %t, %v", used, err)
	}

	if conn, err := pgx.Connect(t.Context(), server.URL()); err == nil {
		_ = conn.Close(t.Context())

		t.Error("the server still runs")
	}
}

// startAfterCrash kills the server in dir and starts it again.
func startAfterCrash(t *testing.T, dir string) *localpg.Server {
	t.Helper()

	pid := postmaster(t, dir)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the server is dead", func() bool { return syscall.Kill(pid, 0) != nil })

	deadline := time.Now().Add(30 * time.Second)

	for {
		server, err := localpg.Start(t.Context(), dir, localpg.Options{}, slog.New(slog.DiscardHandler))
		if err == nil {
			return server
		}

		if time.Now().After(deadline) { // its children need a moment to exit
			t.Fatal(err)
		}
	}
}

//nolint:paralleltest // as root, nothing else may run in a process that starts a server
func TestAServerMayUseAnInstalledPostgres(t *testing.T) {
	installed, dir := directory(t), directory(t)

	if err := start(t, installed).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	binaries := filepath.Join(installed, "postgres")
	options := localpg.Options{Settings: map[string]string{"fsync": "off"}, Binaries: binaries}

	if os.Geteuid() == 0 { // the directory of a server is its own
		_, err := localpg.Start(t.Context(), dir, options, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "other users cannot enter "+binaries) {
			t.Fatalf("got %v for binaries that the user of the server cannot reach", err)
		}
	}

	if err := os.Chmod(installed, 0o711); err != nil {
		t.Fatal(err)
	}

	server, err := localpg.Start(t.Context(), dir, options, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = server.Stop(context.Background()) })

	if got := query(t, server, `SELECT setting FROM pg_config WHERE name = 'BINDIR'`); got != filepath.Join(binaries, "bin") {
		t.Errorf("the server runs from %s, expected %s", got, binaries)
	}
}

func postmaster(t *testing.T, dir string) int {
	t.Helper()

	content, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}

	line, _, _ := strings.Cut(string(content), "\n")

	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}

	return pid
}
