package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/localpg"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"millrace": main, "localpg": startPostgres})
}

// startPostgres starts a given version of Postgres in a directory. It is a separate
// program, because, when run as root, it starts Postgres as another user.
func startPostgres() {
	_ = os.Unsetenv("TMPDIR") // this user cannot enter the script's directory

	if _, err := localpg.Start(context.Background(), os.Args[1], localpg.Options{Version: os.Args[2]}, slog.New(slog.DiscardHandler)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Each story in testdata/stories shows what an operator does and sees when
// something fails, on the embedded broker and on Kafka. `make stories` prints
// them. A story can use testscript's commands and those below.
func TestStories(t *testing.T) {
	t.Parallel()

	files, err := filepath.Glob("testdata/stories/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no stories: %v", err)
	}

	slices.Reverse(files) // postgres_down takes longest, so it starts first

	// Stories mostly wait, so more of them run concurrently than there are processors.
	var brokers sync.WaitGroup

	for _, kind := range []string{broker.Embedded, broker.Kafka} {
		brokers.Go(func() {
			t.Run(kind, func(t *testing.T) {
				var stories sync.WaitGroup

				slots := make(chan struct{}, 2)

				for _, file := range files {
					slots <- struct{}{}

					stories.Go(func() {
						defer func() { <-slots }()

						t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { runStory(t, kind, file) })
					})
				}

				stories.Wait()
			})
		})
	}

	brokers.Wait()
}

func runStory(t *testing.T, kind, file string) {
	t.Helper()

	s := &story{t: t, kind: kind, port: pgtest.FreePort(t), prefix: brokertest.Topic() + "."}

	testscript.RunT(plain{t}, testscript.Params{
		Files: []string{file},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"serve": s.serve, "eventually": s.eventually, "note": s.note, "sql": s.sql, "get": s.get,
			"lines": s.lines, "load": s.load, "postgres": s.postgres,
		},
		Setup: func(env *testscript.Env) error { return s.setup(env) },
	})
}

// plain runs a script as the test itself instead of a subtest, whose name would
// repeat the test's.
type plain struct{ *testing.T }

func (p plain) Run(_ string, f func(testscript.T)) { f(p) }
func (plain) Parallel()                            {}
func (plain) Verbose() bool                        { return testing.Verbose() }

// story holds what a running script uses.
type story struct {
	t      *testing.T
	kind   string
	port   string
	prefix string
	// variables are the names of the environment variables passed to programs.
	variables []string
	service   *exec.Cmd
	log       string
	server    *localpg.Server
	home      string
	downSince time.Time
	loaded    chan struct{}
}

func (s *story) setup(env *testscript.Env) error {
	env.Defer(s.end) // before the directory is removed

	url, direct := s.behind(pgtest.URL(s.t))
	s.log = filepath.Join(env.WorkDir, "service.log")

	env.Vars = append(env.Vars,
		"DATABASE_URL="+url, "MILLRACE_POSTGRES__DIRECT_URL="+direct, "MILLRACE_POSTGRES__MIGRATE_ON_START=true", "MILLRACE_BROKER__KIND="+s.kind,
		"MILLRACE_HTTP__ADDR=127.0.0.1:0", "MILLRACE_HEALTH__ADDR=127.0.0.1:"+s.port,
		"MILLRACE_CONSUMER__PARK_INTERVAL=200ms", "MILLRACE_CONSUMER__PARK_MAX_INTERVAL=1s",
		"MILLRACE_OUTBOX__POLL_INTERVAL=100ms",
		"MILLRACE_BROKER__KAFKA__PREFIX="+s.prefix, "MILLRACE_BROKER__KAFKA__GROUP="+s.prefix+"group",
		"MILLRACE_BROKER__KAFKA__PARTITIONS=4")

	if s.kind == broker.Kafka {
		env.Vars = append(env.Vars, "MILLRACE_BROKER__KAFKA__BROKERS="+brokertest.Address(s.t, brokertest.Kafka))
	}

	for _, variable := range env.Vars {
		name, _, _ := strings.Cut(variable, "=")
		s.variables = append(s.variables, name)
	}

	return nil
}

// behind returns postgres.url and postgres.direct_url for a database. With
// MILLRACE_TEST_SHARED_SESSIONS, the first goes through PgBouncer in transaction mode.
func (s *story) behind(address string) (url, direct string) {
	if os.Getenv("MILLRACE_TEST_SHARED_SESSIONS") == "" {
		return address, ""
	}

	return pgtest.SharedSessions(s.t, address), address
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
		_ = os.RemoveAll(s.home)
	}
}

// serve [NAME=VALUE...] starts the service and waits until it is ready. The
// variables remain set for later commands. `serve stop` drains the service; `serve
// kill` sends SIGKILL.
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

	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		s.variables = append(s.variables, name)
		ts.Setenv(name, value)
	}

	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)

	defer log.Close()

	before, err := os.ReadFile(s.log)
	ts.Check(err)

	s.service = s.command(ts, "millrace", "serve")
	s.service.Stdout, s.service.Stderr = log, log
	ts.Check(s.service.Start())

	pgtest.Eventually(s.t, "the service is ready", func() bool {
		now, _ := os.ReadFile(s.log)

		return bytes.Contains(now[len(before):], []byte("msg=ready"))
	})
}

func (s *story) command(ts *testscript.TestScript, args ...string) *exec.Cmd {
	// The script's PATH contains the program under test.
	path := args[0]

	for dir := range strings.SplitSeq(ts.Getenv("PATH"), string(os.PathListSeparator)) {
		if _, err := os.Stat(filepath.Join(dir, args[0])); err == nil {
			path = filepath.Join(dir, args[0])

			break
		}
	}

	cmd := exec.CommandContext(context.Background(), path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")

	for _, name := range s.variables {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}

	return cmd
}

// patience is how long a story waits for an expected result.
const patience = 90 * time.Second

// eventually REGEXP COMMAND... runs a program, sql or get until its output
// matches, and prints that output.
func (s *story) eventually(ts *testscript.TestScript, _ bool, args []string) {
	wanted, err := regexp.Compile("(?ms)" + args[0])
	ts.Check(err)

	var out string

	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		switch args[1] {
		case "sql":
			out, err = runSQL(ts, args[2])
		case "get":
			out, err = s.fetch(args[2])
		default:
			var output []byte

			output, err = s.command(ts, args[1:]...).CombinedOutput()
			out = string(output)
		}

		if wanted.MatchString(out) {
			break
		}

		if time.Now().After(deadline) {
			ts.Fatalf("no %q from %v in time; the last output is (%v):\n%s", args[0], args[1:], err, out)
		}
	}

	fmt.Fprint(ts.Stdout(), out)
}

// note NAME REGEXP sets a variable to what the group of REGEXP matches in the last
// output.
func (*story) note(ts *testscript.TestScript, _ bool, args []string) {
	found := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if found == nil {
		ts.Fatalf("there is no %q in the last output", args[1])
	}

	ts.Setenv(args[0], found[1])
}

// lines FILE COUNT TEMPLATE writes lines from a template, in which {i} is the line number
// and {i%N} is that number modulo N.
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

// load TOPIC FILE COUNT publishes the lines of a file, COUNT per second, while the
// story runs: directly to Kafka, as any producer does, or through the outbox, with
// retries. `load end` waits until all are published.
func (s *story) load(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "end" {
		<-s.loaded

		return
	}

	topic := args[0]
	lines := strings.SplitAfter(strings.TrimSpace(ts.ReadFile(args[1])), "\n")
	count, err := strconv.Atoi(args[2])
	ts.Check(err)

	// The goroutine below must not use ts.
	cmd := s.command(ts, "millrace", "publish", topic, "--file", "-")
	publish := func(part []string) { s.publish(cmd, part) }

	if s.kind == broker.Kafka {
		cfg := broker.DefaultConfig()
		cfg.Kafka.Brokers = []string{ts.Getenv("MILLRACE_BROKER__KAFKA__BROKERS")}
		publish = func(part []string) { s.produce(cfg, s.prefix+topic, part) }
	}

	s.loaded = make(chan struct{})

	go func() {
		defer close(s.loaded)

		next := time.Now()

		for part := range slices.Chunk(lines, count) {
			publish(part)

			next = next.Add(time.Second)
			time.Sleep(time.Until(next)) // returns immediately if late
		}
	}()
}

func (s *story) produce(cfg broker.Config, topic string, lines []string) {
	messages := make([]brokertest.Foreign, len(lines))
	for i, line := range lines {
		messages[i].Payload = []byte(line)
	}

	brokertest.ProduceKafka(s.t, cfg, topic, messages...)
}

func (s *story) publish(like *exec.Cmd, lines []string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Second) {
		cmd := exec.CommandContext(context.Background(), like.Path, like.Args[1:]...)
		cmd.Env, cmd.Stdin = like.Env, strings.NewReader(strings.Join(lines, ""))

		out, err := cmd.CombinedOutput()
		if err == nil {
			return
		}

		if time.Now().After(deadline) {
			s.t.Errorf("could not publish: %v\n%s", err, out)

			return
		}
	}
}

// sql STATEMENTS, or sql FILE.sql, runs statements and prints the rows.
func (*story) sql(ts *testscript.TestScript, _ bool, args []string) {
	statements := args[0]
	if strings.HasSuffix(statements, ".sql") {
		statements = ts.ReadFile(statements)
	}

	out, err := runSQL(ts, statements)
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), out)
}

func runSQL(ts *testscript.TestScript, statements string) (string, error) {
	conn, err := pgx.Connect(context.Background(), ts.Getenv("DATABASE_URL"))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.Background())

	results, err := conn.PgConn().Exec(context.Background(), statements).ReadAll()
	if err != nil {
		return "", err
	}

	var out strings.Builder

	for _, result := range results {
		for _, row := range result.Rows {
			fmt.Fprintf(&out, "%s\n", bytes.Join(row, []byte(" ")))
		}
	}

	return out.String(), nil
}

// get PATH prints the service's response to a GET.
func (s *story) get(ts *testscript.TestScript, _ bool, args []string) {
	out, err := s.fetch(args[0])
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), out)
}

func (s *story) fetch(path string) (string, error) {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://127.0.0.1:"+s.port+path, nil)
	if err != nil {
		return "", err
	}

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()

	body, err := io.ReadAll(response.Body)

	return string(body), err
}

// `postgres up` starts a separate server for the story, `postgres down` stops it,
// and `postgres up SPAN` restarts it once it has been down for that long.
func (s *story) postgres(ts *testscript.TestScript, _ bool, args []string) {
	switch {
	case args[0] == "down":
		ts.Check(s.server.Stop(context.Background()))
		s.downSince = time.Now()

		return
	case len(args) == 2:
		span, err := time.ParseDuration(args[1])
		ts.Check(err)
		time.Sleep(time.Until(s.downSince.Add(span))) // the story needs this much time to pass
	default:
		// Postgres does not run as root, and other users cannot enter the
		// directories of the testing package.
		home, err := os.MkdirTemp("", "millrace-story-*")
		ts.Check(err)
		ts.Check(os.Chmod(home, 0o755))

		s.home = home
	}

	dir := filepath.Join(s.home, "postgres")
	ts.Check(ts.Exec("localpg", dir, pgtest.Version()))

	server, err := localpg.Find(dir)
	ts.Check(err)

	if s.server == nil {
		url, direct := s.behind(server.URL())
		ts.Setenv("DATABASE_URL", url)
		ts.Setenv("MILLRACE_POSTGRES__DIRECT_URL", direct)
	}

	s.server = server
}
