package pgtest

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Version returns the major version of Postgres to test with, or "" for the default.
func Version() string { return os.Getenv("MILLRACE_TEST_POSTGRES_VERSION") }

// Server is a private Postgres that a test may stop.
type Server struct {
	URL string

	tb      testing.TB
	dir     string
	running bool
}

// NewServer starts an empty Postgres that stops when the test ends.
func NewServer(tb testing.TB) *Server {
	tb.Helper()

	s := &Server{tb: tb, dir: filepath.Join(publicDir(tb), "postgres")}
	s.start()
	tb.Cleanup(s.Stop)

	return s
}

func (s *Server) start() {
	s.tb.Helper()

	s.URL = strings.TrimSpace(s.localpg("start", "-fast", "-version", Version()))
	s.running = true
}

// Standby starts a standby that replicates from s.
func (s *Server) Standby() *Server {
	s.tb.Helper()

	standby := &Server{tb: s.tb, dir: filepath.Join(publicDir(s.tb), "postgres")}
	address, err := url.Parse(s.URL)
	if err != nil {
		s.tb.Fatal(err)
	}

	password, _ := address.User.Password()
	source := "host=127.0.0.1 port=" + address.Port() + " user=" + address.User.Username() + " password=" + password

	// A stopped server's files are a backup.
	s.Stop()
	run(s.tb, "cp", "-a", s.dir, standby.dir)
	run(s.tb, "rm", standby.dir+"/port")
	run(s.tb, "sh", "-c", `cd "$0" && touch standby.signal && echo "primary_conninfo = '$1'" >>postgresql.auto.conf && chown --reference=PG_VERSION standby.signal`,
		standby.dir+"/data", source)
	s.start()
	standby.start()
	s.tb.Cleanup(standby.Stop)

	return standby
}

// Stop stops the server if it is running.
func (s *Server) Stop() {
	s.tb.Helper()

	if s.running {
		s.localpg("stop")
	}

	s.running = false
}

// Kill ends the server as a crash would.
func (s *Server) Kill() {
	s.tb.Helper()
	s.localpg("kill")
	s.running = false
}

// Encrypt makes the server accept TLS with a certificate and its key in PEM.
func (s *Server) Encrypt(certificate, key []byte) {
	s.tb.Helper()

	for name, content := range map[string][]byte{"server.crt": certificate, "server.key": key} {
		path := filepath.Join(s.dir, "data", name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			s.tb.Fatal(err)
		}

		run(s.tb, "chown", "--reference="+filepath.Join(s.dir, "data", "PG_VERSION"), path)
	}

	conn, err := pgx.Connect(context.Background(), s.URL)
	if err != nil {
		s.tb.Fatal(err)
	}

	defer func() { _ = conn.Close(context.Background()) }()

	for _, sql := range []string{`ALTER SYSTEM SET ssl = on`, `SELECT pg_reload_conf()`} {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			s.tb.Fatalf("%s: %v", sql, err)
		}
	}

	Eventually(s.tb, "the server has read its configuration", func() bool { return Value[string](s.tb, conn, `SHOW ssl`) == "on" })
}

// localpg runs scripts/localpg in a process of its own, because it changes the user
// of the process.
func (s *Server) localpg(action string, flags ...string) string {
	s.tb.Helper()

	return run(s.tb, "go", append([]string{"run", "./scripts/localpg", action, "-dir", s.dir}, flags...)...)
}

func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()

	var problems strings.Builder

	cmd := osexec.CommandContext(context.Background(), name, args...)
	cmd.Dir, cmd.Stderr = Root(), &problems

	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, problems.String())
	}

	return string(out)
}

// publicDir returns a directory that all users can enter, unlike those of the testing
// package: Postgres and PgBouncer do not run as root.
func publicDir(tb testing.TB) string {
	tb.Helper()

	dir, err := os.MkdirTemp("", "millrace-test-*") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}

	tb.Cleanup(func() { _ = os.RemoveAll(dir) })

	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}

	return dir
}

// Pooled returns the address of a PgBouncer in front of the server at address. mode is
// its pool_mode. The PgBouncer stops when the test ends.
func Pooled(tb testing.TB, address, mode string) string {
	tb.Helper()

	if _, err := osexec.LookPath("pgbouncer"); err != nil && os.Geteuid() != 0 {
		tb.Skip("PgBouncer is not installed: run `sudo apt-get install pgbouncer`")
	}

	server, err := url.Parse(address)
	if err != nil {
		tb.Fatal(err)
	}

	dir, port := publicDir(tb), FreePort(tb)
	password, _ := server.User.Password()
	script := filepath.Join(Root(), "scripts", "pgbouncer.sh")

	tb.Cleanup(func() { run(tb, script, "stop", dir) })
	run(tb, script, "start", dir, port, mode, server.Hostname(), server.Port(), server.User.Username(), password)

	server.Host = net.JoinHostPort("127.0.0.1", port)

	return server.String()
}

// SharedSessions returns the address of a PgBouncer in transaction mode in front of the
// database at address. It applies the settings that the service asks for to the database,
// not to the role, because tests share the role.
func SharedSessions(tb testing.TB, address string) string {
	tb.Helper()

	pooled := Pooled(tb, address, "transaction")

	pool, release, err := postgres.NewPool(postgres.Config{URL: postgres.Secret(pooled), DirectURL: postgres.Secret(address), MaxConns: 4})
	if err != nil {
		tb.Fatal(err)
	}
	defer release()

	refused, ok := errors.AsType[*postgres.SetupError](pool.Ping(context.Background()))
	if !ok {
		tb.Fatal("the service does not ask for its settings")
	}

	admin, err := pgx.Connect(context.Background(), address)
	if err != nil {
		tb.Fatal(err)
	}

	defer func() { _ = admin.Close(context.Background()) }()

	_, statements, _ := strings.Cut(refused.Problem, "\n")
	name := Value[string](tb, admin, `SELECT current_database()::text`)

	for statement := range strings.Lines(statements) {
		_, setting, _ := strings.Cut(statement, " SET ")
		if _, err := admin.Exec(context.Background(), `ALTER DATABASE `+name+` SET `+setting); err != nil {
			tb.Fatalf("%s: %v", statement, err)
		}
	}

	KillBackends(tb, admin) // RECONNECT

	return pooled
}
