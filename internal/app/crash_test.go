package app_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// program builds millrace into dir.
func program(t *testing.T, dir string) string {
	t.Helper()

	path := filepath.Join(dir, "millrace")
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/millrace").CombinedOutput(); err != nil {
		t.Fatalf("building: %v: %s", err, out)
	}

	return path
}

// serve starts the program with the database at url and waits until it is ready.
func serve(t *testing.T, path, url string, server *mailtest.Server) *exec.Cmd {
	t.Helper()

	cmd := exec.Command(path, "serve")
	cmd.Env = append(os.Environ(),
		"DATABASE_URL="+url, "MILLRACE_HTTP__ADDR=127.0.0.1:0", "MILLRACE_HEALTH__ADDR=127.0.0.1:0", "MILLRACE_POSTGRES__MIGRATE_ON_START=false",
		"MILLRACE_OUTBOX__POLL_INTERVAL=50ms", "MILLRACE_CONSUMER__PARK_INTERVAL=50ms",
		"MILLRACE_NOTIFICATION__EMAIL__HOST=127.0.0.1", fmt.Sprint("MILLRACE_NOTIFICATION__EMAIL__PORT=", server.Port),
		"MILLRACE_NOTIFICATION__EMAIL__CA_FILE="+server.CAFile, "MILLRACE_NOTIFICATION__EMAIL__USER="+mailtest.User,
		"MILLRACE_NOTIFICATION__EMAIL__PASSWORD="+mailtest.Password, "MILLRACE_NOTIFICATION__EMAIL__FROM=shop@example.com")

	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}

	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { kill(cmd) })

	ready := make(chan struct{})

	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if strings.Contains(lines.Text(), "msg=ready") {
				close(ready)
			}
		}
	}()

	<-ready

	return cmd
}

// kill terminates a process like kill -9 and waits for it to exit.
func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// crashes are the moments at which a service is killed.
var crashes = map[string]struct {
	// crash waits for the right moment and kills the service.
	crash func(t *testing.T, s *apptest.Service, server *mailtest.Server, start func() *exec.Cmd)
	// atMost is the maximum number of copies of the e-mail.
	atMost int
}{
	"before the mail server has the e-mail": {func(_ *testing.T, _ *apptest.Service, server *mailtest.Server, start func() *exec.Cmd) {
		killAt(server, mailtest.Addressed, start)
	}, 1},
	"when the mail server has the e-mail, before its response": {func(_ *testing.T, _ *apptest.Service, server *mailtest.Server, start func() *exec.Cmd) {
		killAt(server, mailtest.Accepted, start)
	}, 2},
	"after the response, before the commit": {func(t *testing.T, s *apptest.Service, _ *mailtest.Server, start func() *exec.Cmd) {
		t.Helper()

		tx, err := s.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()

		if _, err := tx.Exec(t.Context(), `LOCK TABLE notifications IN SHARE MODE`); err != nil {
			t.Fatal(err)
		}

		cmd := start()
		pgtest.Eventually(t, "the result is about to be recorded", func() bool {
			return apptest.Value[int](s, `SELECT count(*) FROM pg_locks WHERE relation = 'notifications'::regclass AND NOT granted`) > 0
		})
		kill(cmd)
	}, 2},
	"after the commit, before the acknowledgement": {func(t *testing.T, s *apptest.Service, server *mailtest.Server, start func() *exec.Cmd) {
		t.Helper()

		tx, err := s.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()

		// Block the relay's delete, which is the embedded broker's acknowledgement.
		block := sync.OnceFunc(func() {
			if _, err := tx.Exec(t.Context(), `SELECT FROM outbox WHERE topic = 'notifications' FOR UPDATE`); err != nil {
				t.Error(err)
			}
		})
		server.At(func(stage mailtest.Stage) {
			if stage == mailtest.Accepted {
				block()
			}
		})

		cmd := start()
		pgtest.Eventually(t, "the e-mail is recorded after the commit", func() bool {
			return apptest.Value[int](s, `SELECT count(*) FROM notifications`) == 1
		})
		kill(cmd)
	}, 1},
}

func TestAKilledServiceLosesNoEmailAndSendsNoThird(t *testing.T) {
	t.Parallel()

	path := program(t, t.TempDir())

	for name, c := range crashes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			url := pgtest.URL(t)
			s := apptest.New(t, url) // not running: only publishes and queries
			server := mailtest.NewServer(t)
			id := s.Publish("user.created", guide(t, "user.created"))

			c.crash(t, s, server, func() *exec.Cmd { return serve(t, path, url, server) })
			server.At(func(mailtest.Stage) {})
			serve(t, path, url, server)

			pgtest.Eventually(t, "the e-mail is recorded", func() bool {
				return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE status = 'sent'`) == 1
			})
			s.WaitUntilIdle()

			received := server.Received()
			if len(received) < 1 || len(received) > c.atMost {
				t.Errorf("%d copies arrived, expected 1 to %d", len(received), c.atMost)
			}

			for _, text := range received {
				if messageID(text) != messageID(received[0]) {
					t.Errorf("the copies have different ids: %s and %s", messageID(text), messageID(received[0]))
				}
			}

			if n := apptest.Value[int](s, `SELECT count(*) FROM events`); n != 1 {
				t.Errorf("%d events, expected only the user's creation by %s", n, id)
			}
		})
	}
}

// killAt kills the service at a stage of the conversation with the mail server.
func killAt(server *mailtest.Server, at mailtest.Stage, start func() *exec.Cmd) {
	var (
		once    sync.Once
		reached = make(chan struct{})
		dead    = make(chan struct{})
	)

	server.At(func(stage mailtest.Stage) {
		if stage == at {
			once.Do(func() { close(reached) })
			<-dead
		}
	})

	cmd := start()

	<-reached
	kill(cmd)
	close(dead)
}

func messageID(text string) string {
	for line := range strings.Lines(text) {
		if id, ok := strings.CutPrefix(line, "Message-ID: "); ok {
			return strings.TrimSpace(id)
		}
	}

	return "none"
}
