package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/millrace/millrace/internal/brokertest"
	"github.com/millrace/millrace/internal/localpg"
	"github.com/millrace/millrace/internal/pgtest"
)

func TestMain(m *testing.M) {
	localpg.Reexec()
	testscript.Main(m, map[string]func(){"millrace": main})
}

// Each story in testdata/stories tells what an operator does and sees when
// something fails, on the embedded broker and on Kafka. `make stories` prints
// them. A story has the commands of testscript and those below.
func TestStories(t *testing.T) {
	t.Parallel()

	files, err := filepath.Glob("testdata/stories/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no stories: %v", err)
	}

	for _, kind := range []string{"embedded", "kafka"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()

			for _, file := range files {
				t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
					t.Parallel()
					tell(t, kind, file)
				})
			}
		})
	}
}

func tell(t *testing.T, kind, file string) {
	t.Helper()

	s := &story{t: t, port: brokertest.FreePort(t), prefix: brokertest.Topic() + "."}
	t.Cleanup(s.end)

	testscript.RunT(plain{t}, testscript.Params{
		Files: []string{file},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"serve": s.serve, "eventually": s.eventually, "lines": s.lines, "sql": s.sql, "postgres": s.postgres,
		},
		Setup: func(env *testscript.Env) error { return s.setup(env, kind) },
	})
}

// plain runs a script as the test itself, not as a subtest: its name is told
// already.
type plain struct{ *testing.T }

func (p plain) Run(_ string, f func(testscript.T)) { f(p) }
func (plain) Parallel()                            {}
func (plain) Verbose() bool                        { return testing.Verbose() }

// story is what runs while a script does.
type story struct {
	t       *testing.T
	port    string
	prefix  string
	service *exec.Cmd
	log     string
	server  *localpg.Server
}

func (s *story) setup(env *testscript.Env, kind string) error {
	url := pgtest.URL(s.t)
	s.log = filepath.Join(env.WorkDir, "service.log")

	env.Vars = append(env.Vars,
		"DATABASE_URL="+url, "MILLRACE_POSTGRES__MIGRATE_ON_START=true", "MILLRACE_BROKER__KIND="+kind,
		"MILLRACE_HTTP__ADDR=127.0.0.1:"+s.port,
		"MILLRACE_CONSUMER__PARK_INTERVAL=200ms", "MILLRACE_CONSUMER__PARK_MAX_INTERVAL=1s",
		"MILLRACE_OUTBOX__POLL_INTERVAL=100ms",
		"MILLRACE_BROKER__KAFKA__PREFIX="+s.prefix, "MILLRACE_BROKER__KAFKA__GROUP="+s.prefix+"group",
		"MILLRACE_BROKER__KAFKA__PARTITIONS=4")

	if kind == "kafka" {
		env.Vars = append(env.Vars, "MILLRACE_BROKER__KAFKA__BROKERS="+brokertest.Address(s.t, brokertest.Kafka))
	}

	return nil
}

func (s *story) end() {
	if s.service != nil {
		_ = s.service.Process.Kill()
		_ = s.service.Wait()
	}

	if s.t.Failed() {
		log, _ := os.ReadFile(s.log)
		s.t.Logf("the service's log:\n%s", log)
	}

	if s.server != nil {
		_ = s.server.Stop(context.Background())
	}
}

// serve [NAME=VALUE...] starts the service and waits until it is ready; `serve
// stop` drains it, `serve kill` kills it as kill -9 does.
func (s *story) serve(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 1 && (args[0] == "stop" || args[0] == "kill") {
		signal := syscall.SIGTERM
		if args[0] == "kill" {
			signal = syscall.SIGKILL
		}

		ts.Check(s.service.Process.Signal(signal))

		if err := s.service.Wait(); err != nil && args[0] == "stop" {
			ts.Fatalf("the service did not drain: %v", err)
		}

		s.service = nil

		return
	}

	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)

	defer log.Close()

	before, err := os.ReadFile(s.log)
	ts.Check(err)

	s.service = s.command(ts, []string{"millrace", "serve"}, args...)
	s.service.Stdout, s.service.Stderr = log, log
	ts.Check(s.service.Start())

	pgtest.Eventually(s.t, "the service is ready", func() bool {
		now, _ := os.ReadFile(s.log)

		return bytes.Contains(now[len(before):], []byte("msg=ready"))
	})
}

func (s *story) command(ts *testscript.TestScript, args []string, env ...string) *exec.Cmd {
	// The script's PATH has the program under test.
	path := args[0]

	for dir := range strings.SplitSeq(ts.Getenv("PATH"), string(os.PathListSeparator)) {
		if _, err := os.Stat(filepath.Join(dir, args[0])); err == nil {
			path = filepath.Join(dir, args[0])

			break
		}
	}

	cmd := exec.CommandContext(context.Background(), path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")

	for _, name := range []string{
		"PATH", "HOME", "DATABASE_URL", "MILLRACE_POSTGRES__MIGRATE_ON_START", "MILLRACE_HTTP__ADDR", "MILLRACE_BROKER__KIND",
		"MILLRACE_BROKER__KAFKA__BROKERS", "MILLRACE_BROKER__KAFKA__PREFIX", "MILLRACE_BROKER__KAFKA__GROUP", "MILLRACE_BROKER__KAFKA__PARTITIONS",
		"MILLRACE_CONSUMER__PARK_INTERVAL", "MILLRACE_CONSUMER__PARK_MAX_INTERVAL", "MILLRACE_OUTBOX__POLL_INTERVAL",
	} {
		if value := ts.Getenv(name); value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}

	cmd.Env = append(cmd.Env, env...)

	return cmd
}

// patience is how long a story waits for what is to come.
const patience = 90 * time.Second

// eventually REGEXP COMMAND... runs a command until its output matches, and
// prints what it says then.
func (s *story) eventually(ts *testscript.TestScript, _ bool, args []string) {
	wanted, err := regexp.Compile("(?ms)" + args[0])
	ts.Check(err)

	var out []byte

	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out, _ = s.command(ts, args[1:]).CombinedOutput()
		if wanted.Match(out) {
			break
		}

		if time.Now().After(deadline) {
			ts.Fatalf("waited in vain for %q from %v; it says:\n%s", args[0], args[1:], out)
		}
	}

	fmt.Fprintf(ts.Stdout(), "%s", out)
}

// lines FILE COUNT TEMPLATE writes lines: in each {i} is its number, and {i%N}
// the remainder.
func (s *story) lines(ts *testscript.TestScript, _ bool, args []string) {
	count, err := strconv.Atoi(args[1])
	ts.Check(err)

	var text strings.Builder

	remainder := regexp.MustCompile(`\{i%(\d+)\}`)

	for i := range count {
		line := remainder.ReplaceAllStringFunc(args[2], func(match string) string {
			n, _ := strconv.Atoi(remainder.FindStringSubmatch(match)[1])

			return strconv.Itoa(i % n)
		})
		text.WriteString(strings.ReplaceAll(line, "{i}", strconv.Itoa(i)) + "\n")
	}

	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text.String()), 0o600))
}

// sql STATEMENT runs a statement and prints what it finds.
func (s *story) sql(ts *testscript.TestScript, _ bool, args []string) {
	conn, err := pgx.Connect(context.Background(), ts.Getenv("DATABASE_URL"))
	ts.Check(err)

	defer conn.Close(context.Background())

	rows, err := conn.Query(context.Background(), args[0])
	ts.Check(err)

	for rows.Next() {
		values, err := rows.Values()
		ts.Check(err)
		fmt.Fprintln(ts.Stdout(), strings.Trim(fmt.Sprint(values), "[]"))
	}

	ts.Check(rows.Err())
}

// postgres up starts a server of the story's own, down ends it as a crash does.
func (s *story) postgres(ts *testscript.TestScript, _ bool, args []string) {
	switch args[0] {
	case "up":
		dir := filepath.Join(s.t.TempDir(), "..", "postgres")

		server, err := localpg.Start(context.Background(), localpg.Config{Dir: dir}, slog.New(slog.DiscardHandler))
		ts.Check(err)

		s.server = server
		ts.Setenv("DATABASE_URL", server.URL())
	case "down":
		ts.Check(s.server.Stop(context.Background()))
	default:
		ts.Check(errors.New("expected up or down"))
	}
}
