package server

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// Postgres is a private Postgres. It runs as the owner of its data, a child of this
// process.
type Postgres struct {
	// Dir has the data. The log is beside it, in the file Dir.log.
	Dir string

	binaries string
	port     int
	owner    *syscall.Credential
	user     *url.Userinfo
	settings []string
	cmd      *exec.Cmd
	ended    chan struct{}
}

// StartPostgres starts a Postgres with its data in dir and settings such as
// "max_connections=100". It has the database millrace, which is empty.
func StartPostgres(ctx context.Context, dir string, settings ...string) (*Postgres, error) {
	t, err := template(ctx)
	if err != nil {
		return nil, err
	}

	port, err := FreePort()
	if err != nil {
		return nil, err
	}

	p := &Postgres{Dir: filepath.Join(dir, "postgres"), binaries: t.binaries, port: port, owner: t.owner, user: t.user, settings: settings}

	return p, errors.Join(copyData(ctx, t.data, p.Dir), p.Start(ctx))
}

// copyData copies the files of a server that is not running.
func copyData(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copying the data of Postgres: %w: %s", err, out)
	}

	return nil
}

// Port is the port on loopback at which the server listens.
func (p *Postgres) Port() int { return p.port }

// URL returns the address of a database for the superuser.
func (p *Postgres) URL(database string) string { return p.URLAt(Loopback(p.port), database) }

// URLAt is URL for clients that reach the server through another host and port.
func (p *Postgres) URLAt(hostport, database string) string {
	address := url.URL{Scheme: "postgres", User: p.user, Host: hostport, Path: "/" + database, RawQuery: "sslmode=disable"}

	return address.String()
}

// Start starts the server, or starts it again with its data, and returns once it answers.
func (p *Postgres) Start(ctx context.Context) error {
	log, err := os.OpenFile(p.Dir+".log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has it

	return Until(ctx, "Postgres to start; see "+log.Name(), patience, func() (bool, error) {
		if !p.Running() {
			// After SIGKILL, its children may hold the shared memory for a moment.
			if err := p.launch(log); err != nil {
				return false, err
			}
		}

		return p.answers(ctx), nil
	})
}

func (p *Postgres) launch(log *os.File) error {
	args := []string{"-D", p.Dir, "-p", strconv.Itoa(p.port)}
	for _, s := range append([]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=", "timezone=UTC", "logging_collector=off", "log_line_prefix=%m [%p] ", "shared_buffers=64MB",
	}, p.settings...) {
		args = append(args, "-c", s)
	}

	cmd, ended := exec.Command(filepath.Join(p.binaries, "bin", "postgres"), args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, p.Dir
	// Ctrl-C must not reach it before what uses it has ended.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.owner, Setpgid: true}

	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting Postgres: %w", err)
	}

	p.cmd, p.ended = cmd, ended

	go func() {
		_ = cmd.Wait() // its log says why
		close(ended)
	}()

	return nil
}

// Running reports whether the server's process is there.
func (p *Postgres) Running() bool {
	if p.cmd == nil {
		return false
	}

	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *Postgres) answers(ctx context.Context) bool {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return false
	}

	return conn.Close(ctx) == nil
}

// Stop ends the server as `pg_ctl stop -m fast` does: it ends all sessions.
func (p *Postgres) Stop() error { return p.end(syscall.SIGINT) }

// Crash ends the server as `pg_ctl stop -m immediate` does: without a checkpoint.
func (p *Postgres) Crash() error { return p.end(syscall.SIGQUIT) }

// Kill ends the server with SIGKILL.
func (p *Postgres) Kill() error { return p.end(syscall.SIGKILL) }

func (p *Postgres) end(signal syscall.Signal) error {
	if !p.Running() {
		return nil
	}

	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}

	return Until(context.Background(), "Postgres to stop", patience, func() (bool, error) { return !p.Running(), nil })
}

// model is a Postgres that has never been used. Servers start with copies of its data.
type model struct {
	data, binaries string
	owner          *syscall.Credential
	user           *url.Userinfo
}

// template returns the model in .local, and creates it if needed, which downloads Postgres.
func template(ctx context.Context) (model, error) {
	root, err := Root()
	if err != nil {
		return model{}, err
	}

	// scripts/localpg is a process of its own, because it changes the user of the process.
	localpg := func(action string) (string, error) {
		var problems strings.Builder

		cmd := exec.CommandContext(ctx, "go", "run", "./scripts/localpg", action, "-dir", filepath.Join(root, ".local", "proof", "postgres"))
		cmd.Dir, cmd.Stderr = root, &problems

		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("preparing Postgres: %w: %s", err, problems.String())
		}

		return strings.TrimSpace(string(out)), err
	}

	unlock, err := lock(filepath.Join(root, ".local", "proof"))
	if err != nil {
		return model{}, err
	}
	defer unlock()

	known := filepath.Join(root, ".local", "proof", "template")

	text, err := os.ReadFile(filepath.Clean(known))
	if errors.Is(err, os.ErrNotExist) {
		var address, data string

		if address, err = localpg("start"); err != nil {
			return model{}, err
		}

		if data, err = dataOf(ctx, address); err != nil {
			return model{}, err
		}

		if _, err = localpg("stop"); err != nil {
			return model{}, err
		}

		text = []byte(address + "\n" + data)
		err = os.WriteFile(known, text, 0o600)
	}

	if err != nil {
		return model{}, err
	}

	return newModel(string(text))
}

func newModel(text string) (model, error) {
	address, data, _ := strings.Cut(text, "\n")

	u, err := url.Parse(address)
	if err != nil {
		return model{}, err
	}

	info, err := os.Stat(filepath.Join(data, "PG_VERSION")) //nolint:gosec // Postgres itself said where its data is
	if err != nil {
		return model{}, err
	}

	m := model{data: data, binaries: filepath.Join(filepath.Dir(data), "postgres"), user: u.User}

	if s, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		m.owner = &syscall.Credential{Uid: s.Uid, Gid: s.Gid}
	}

	return m, nil
}

func dataOf(ctx context.Context, address string) (dir string, err error) {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return "", err
	}

	defer func() { _ = conn.Close(ctx) }()

	return dir, conn.QueryRow(ctx, `SHOW data_directory`).Scan(&dir)
}

// lock makes processes that prepare the same directory wait for each other.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // Postgres does not run as root
		return nil, err
	}

	file, err := os.OpenFile(filepath.Join(filepath.Clean(dir), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}

	return func() { _ = file.Close() }, syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
}
