// Package localpg runs a private Postgres for development and tests. It downloads the
// binaries once. Do not use it in production.
package localpg

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/jackc/pgx/v5"
)

// Versions are the supported versions of Postgres, by major version.
var Versions = map[string]embeddedpostgres.PostgresVersion{
	"16": embeddedpostgres.V16,
	"17": embeddedpostgres.V17,
	"18": embeddedpostgres.V18,
}

// Version is the major version that Start runs by default. Data belongs to one major
// version, so raising Version requires a dump and restore.
const Version = "18"

const (
	user     = "millrace"
	database = "millrace"
)

// Server is a running Postgres. It outlives the process that started it.
type Server struct {
	home     home
	port     uint32
	password string
}

// URL returns the connection string of the superuser.
func (s *Server) URL() string {
	address := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, s.password),
		Host: fmt.Sprintf("127.0.0.1:%d", s.port), Path: "/" + database, RawQuery: "sslmode=disable",
	}

	return address.String()
}

// Options configures a new server.
type Options struct {
	// Version is a key of Versions. Defaults to Version.
	Version string
	// Settings go into postgresql.conf.
	Settings map[string]string
	// Binaries is the directory of an installed Postgres of that version, with bin, lib and
	// share. Without it, Start downloads binaries, which are compiled for small size.
	Binaries string
}

// Start starts the server in dir with settings for postgresql.conf, or returns the
// one already running there. It keeps existing data. The server listens on a free
// loopback port, and keeps that port until another program takes it.
//
// If this process runs as root, data and binaries may be in another directory: Postgres
// refuses to run as root, and its user must be able to access them. The whole process
// runs as that user until Start returns, so nothing else may run in it.
func Start(ctx context.Context, dir string, options Options, logger *slog.Logger) (*Server, error) {
	version, known := Versions[cmp.Or(options.Version, Version)]
	if !known {
		return nil, fmt.Errorf("postgres %s is not supported, expected one of %s", options.Version, strings.Join(slices.Sorted(maps.Keys(Versions)), ", "))
	}

	home, err := locate(dir)
	if err != nil {
		return nil, err
	}

	if err := home.prepare(); err != nil {
		return nil, err
	}

	server, err := newServer(home)
	if err != nil {
		return nil, err
	}

	if err := home.checkVersion(version); err != nil {
		return nil, err
	}

	if server.answers(ctx) {
		return server, nil
	}

	if !portIsFree(server.port) {
		if server, err = home.changePort(logger, server.port); err != nil {
			return nil, err
		}
	}

	if err := home.install(options.Binaries); err != nil {
		return nil, err
	}

	if !home.hasBinaries() {
		logger.Info("downloading postgres", slog.String("version", string(version)))
	}

	if err := home.asOwner(func() error { return server.launch(version, options.Settings) }); err != nil {
		return nil, err
	}

	if err := server.endHealthCheck(ctx); err != nil {
		return nil, err
	}

	logger.Info("started a private postgres", slog.String("data", home.data()), slog.Uint64("port", uint64(server.port)))

	return server, nil
}

// Stop stops the server and keeps its data.
func (s *Server) Stop(ctx context.Context) error { return s.stop(ctx, "fast") }

// StopUnlessUsed is Stop, unless others are connected to the server, such as a program that
// was started with the same directory. used is true if it still runs for them.
func (s *Server) StopUnlessUsed(ctx context.Context) (used bool, err error) {
	if s.clients(ctx) > 0 {
		return true, nil
	}

	return false, s.Stop(ctx)
}

// closing is how long the server may take to notice that a connection has been closed.
const closing = 2 * time.Second

// clients returns the number of other connections, once those that have just been closed
// are gone. It returns 0 if the server does not answer.
func (s *Server) clients(ctx context.Context) (n int) {
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return 0
	}

	defer func() { _ = conn.Close(ctx) }()

	for deadline := time.Now().Add(closing); ; time.Sleep(closing / 40) {
		err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&n)
		if err != nil || n == 0 || time.Now().After(deadline) {
			return n
		}
	}
}

// Kill ends the server without a checkpoint, as a crash would.
func (s *Server) Kill(ctx context.Context) error { return s.stop(ctx, "immediate") }

func (s *Server) stop(ctx context.Context, mode string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.home.binaries(), "bin", "pg_ctl"),
		"stop", "-w", "-m", mode, "-D", s.home.data())
	cmd.Dir = s.home.root
	s.home.assign(cmd)

	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("stopping postgres: %w: %s", err, strings.TrimSpace(string(out)))
	}

	return nil
}

// Find returns the server started in dir earlier, running or not.
func Find(dir string) (*Server, error) {
	home, err := locate(dir)
	if err != nil {
		return nil, err
	}

	if _, err := os.Stat(home.data()); err != nil {
		return nil, fmt.Errorf("no postgres found in %s", dir)
	}

	return newServer(home)
}

func newServer(home home) (*Server, error) {
	password, err := home.remember("password", func() (string, error) { return rand.Text(), nil })
	if err != nil {
		return nil, err
	}

	remembered, err := home.remember("port", choosePort)
	if err != nil {
		return nil, err
	}

	port, err := strconv.ParseUint(remembered, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("reading the port of postgres: %w", err)
	}

	return &Server{home: home, port: uint32(port), password: password}, nil
}

// changePort moves the server to another port.
func (h home) changePort(logger *slog.Logger, taken uint32) (*Server, error) {
	if err := os.Remove(filepath.Join(h.root, "port")); err != nil {
		return nil, fmt.Errorf("removing the saved port of postgres: %w", err)
	}

	server, err := newServer(h)
	if err == nil {
		logger.Info("the port of postgres is in use; choosing another one",
			slog.Uint64("taken", uint64(taken)), slog.Uint64("port", uint64(server.port)))
	}

	return server, err
}

// choosePort returns a free port below the kernel's range of ephemeral ports (32768
// and up, ip(7)), so that it stays free.
func choosePort() (string, error) {
	for range 100 {
		if port := 10_000 + mathrand.Uint32N(20_000); portIsFree(port) {
			return strconv.FormatUint(uint64(port), 10), nil
		}
	}

	return "", errors.New("no free port found for postgres")
}

func portIsFree(port uint32) bool {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}

	return listener.Close() == nil
}

// connectTimeout bounds the check of whether a server responds.
const connectTimeout = 2 * time.Second

// answers reports whether this server is running, that is, accepts the password.
func (s *Server) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()

	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return false
	}

	_ = conn.Close(ctx)

	return true
}

// launch starts Postgres as the current user.
func (s *Server) launch(version embeddedpostgres.PostgresVersion, settings map[string]string) error {
	root := s.home.root
	parameters := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "",
		"timezone":                "UTC",
		"logging_collector":       "on",
		"log_directory":           filepath.Join(root, "log"),
	}

	maps.Copy(parameters, settings)

	var output strings.Builder

	err := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(version).Port(s.port).Username(user).Password(s.password).Database(database).
		DataPath(s.home.data()).BinariesPath(s.home.binaries()).
		RuntimePath(filepath.Join(root, "run")).CachePath(filepath.Join(root, "cache")).
		Locale("C.UTF-8").Encoding("UTF8").StartParameters(parameters).
		StartTimeout(time.Minute).Logger(&output)).Start()
	if err != nil {
		return fmt.Errorf("starting postgres in %s: %w\n%s(to use your own Postgres, set DATABASE_URL)", root, err, output.String())
	}

	return nil
}

// endHealthCheck ends the session that embedded-postgres leaves open when it has seen the
// server answer. It would last until the garbage collector finds it, and count as a client.
func (s *Server) endHealthCheck(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return fmt.Errorf("connecting to the private postgres: %w", err)
	}

	defer func() { _ = conn.Close(ctx) }()

	_, err = conn.Exec(ctx, `
		SELECT pg_terminate_backend(pid, $1) FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name = '' AND query = 'SELECT 1'`,
		closing.Milliseconds())
	if err != nil {
		return fmt.Errorf("ending the health check of the private postgres: %w", err)
	}

	return nil
}

// home is the directory of a server.
type home struct {
	root string
	// owner is the user that runs the server if this process is root, otherwise 0.
	owner uint32
}

func (h home) data() string     { return filepath.Join(h.root, "data") }
func (h home) binaries() string { return filepath.Join(h.root, "postgres") }

func (h home) hasBinaries() bool {
	_, err := os.Stat(filepath.Join(h.binaries(), "bin", "pg_ctl"))

	return err == nil
}

// install makes the server use the binaries of an installed Postgres, if there are any.
func (h home) install(binaries string) error {
	if binaries == "" {
		return nil
	}

	binaries, err := filepath.Abs(binaries)
	if err != nil {
		return fmt.Errorf("finding %s: %w", binaries, err)
	}

	if h.owner != 0 && !reachable(binaries) {
		return fmt.Errorf("postgres does not run as root, and other users cannot enter %s: use a directory that they can enter", binaries)
	}

	if err := errors.Join(os.RemoveAll(h.binaries()), os.Symlink(binaries, h.binaries())); err != nil {
		return fmt.Errorf("installing %s: %w", binaries, err)
	}

	return nil
}

// checkVersion rejects data of another major version, which embedded-postgres would
// delete.
func (h home) checkVersion(version embeddedpostgres.PostgresVersion) error {
	major, err := os.ReadFile(filepath.Join(h.data(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	if err != nil {
		return fmt.Errorf("reading version of %s: %w", h.data(), err)
	}

	if found := strings.TrimSpace(string(major)); !strings.HasPrefix(string(version), found+".") {
		return fmt.Errorf("%s contains data of Postgres %s, but this is %s: dump and restore it, or move it elsewhere", h.data(), found, version)
	}

	return nil
}

// remember returns the content of a small file, creating it if necessary.
func (h home) remember(name string, create func() (string, error)) (string, error) {
	path := filepath.Join(h.root, name)

	content, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(content)), nil
	}

	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}

	value, err := create()
	if err != nil {
		return "", err
	}

	if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}

	return value, nil
}
