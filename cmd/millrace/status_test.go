package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// beside returns a function that runs commands alongside a running service.
func beside(t *testing.T, s *apptest.Service) func(args ...string) (out string, code int) {
	t.Helper()

	file := filepath.Join(t.TempDir(), "millrace.yaml")
	if err := os.WriteFile(file, []byte("health: {addr: \""+s.HealthAddr()+"\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	return func(args ...string) (string, int) {
		return run(t, s.Pool.Config().ConnString(), append([]string{"--config", file}, args...)...)
	}
}

// stop stores a stopped message.
func stop(t *testing.T, s *apptest.Service, consumer, topic, key string) {
	t.Helper()

	err := s.Failed.Stop(t.Context(), failed.Entry{
		Consumer: consumer, Topic: topic, MessageID: event.NewID(), Origin: "test", Key: key,
		Headers: event.Headers{}, Payload: []byte("{}"), Reason: event.ReasonInvalid, Error: "order.quantity: is 0, expected 1 to 1000000000",
	})
	if err != nil {
		t.Fatal(err)
	}
}

// shows waits until status exits with code and prints every string in says. The service
// reacts to a pause within a second.
func shows(t *testing.T, millrace func(args ...string) (string, int), code int, says ...string) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprintf("status exits with %d and says %q", code, says), func() bool {
		out, got := millrace("status")

		return got == code && !slices.ContainsFunc(says, func(text string) bool { return !strings.Contains(out, text) })
	})
}

func TestStatusSaysWhatToDoAboutStoppedMessages(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.ExpectFailures()

	millrace := beside(t, s)
	shows(t, millrace, 0, "fulfilment.place", "running", "note: notification.email.host: is not set", "what to do: set it to the mail server")

	for range 3 {
		stop(t, s, "fulfilment.place", "orders.created", "x")
	}

	shows(t, millrace, exitFailure, "degraded: stopped messages: 3 messages are stopped", "what to do: `millrace failed groups` shows why")

	if _, err := s.Pool.Exec(t.Context(), `DELETE FROM failed_messages`); err != nil {
		t.Fatal(err)
	}

	shows(t, millrace, 0, "running")
}

func TestStatusSaysWhatToDoAboutAPausedConsumer(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	millrace := beside(t, s)

	if out, code := millrace("consumers", "pause", "account.create", "--by", "ann", "--why", "fixing the import"); code != 0 {
		t.Fatal(out)
	}

	shows(t, millrace, exitFailure, "paused by ann since ", "degraded: account.create since ", "what to do: `millrace consumers resume account.create`")
	pgtest.Eventually(t, "the service has noticed the pause", func() bool { return len(s.Router.Suspended()) == 1 })

	if out, code := millrace("publish", "user.created", `{"user":{"id":"bob","name":"Bob","email":"bob@example.com"}}`); code != 0 {
		t.Fatal(out)
	}

	pgtest.Eventually(t, "the backlog of the paused consumer is shown", func() bool {
		out, _ := millrace("status")

		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "account.create ") {
				fields := strings.Fields(line)

				return strings.Join(fields[len(fields)-3:], " ") == "1 0 0"
			}
		}

		return false
	})

	if out, _ := millrace("consumers", "list"); !strings.Contains(out, "paused by ann") || !strings.Contains(out, "running") {
		t.Errorf("consumers list:\n%s", out)
	}
}

// A command cannot know what another process is doing unless that process responds.
func TestWithoutAServiceTheStatesOfConsumersAreUnknown(t *testing.T) {
	t.Parallel()

	file := filepath.Join(t.TempDir(), "millrace.yaml")
	if err := os.WriteFile(file, []byte("health: {addr: \"127.0.0.1:1\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	url := pgtest.URL(t)
	if out, code := run(t, url, "consumers", "pause", "account.create", "--by", "ann"); code != 0 {
		t.Fatal(out)
	}

	for _, command := range []string{"status", "consumers list"} {
		out, code := run(t, url, append([]string{"--config", file}, strings.Split(command, " ")...)...)

		if strings.Contains(out, "running") || !strings.Contains(out, "unknown; paused by ann since ") {
			t.Errorf("%s says that consumers are running:\n%s", command, out)
		}

		if command == "status" && (code != exitFailure || !strings.Contains(out, "what to do: start it with `millrace serve`, or correct health.addr")) {
			t.Errorf("%s: exit code %d\n%s", command, code, out)
		}
	}
}

func TestShowSaysWhereTheMessagesOfSomethingMissingAre(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.URL(t)) // not running: published messages stay in the outbox
	url := s.Pool.Config().ConnString()

	stop(t, s, "fulfilment.place", "orders.created", "stopped")
	stop(t, s, "account.create", "user.created", "alice")

	waiting := failed.Entry{
		Consumer: "fulfilment.place", Topic: "orders.created", MessageID: event.NewID(), Origin: "test", Key: "waiting",
		Headers: event.Headers{}, Payload: []byte("{}"), Reason: event.ReasonFailed, Error: "division by zero", Attempts: 1,
	}
	if err := s.Failed.Park(t.Context(), waiting, 1<<40); err != nil {
		t.Fatal(err)
	}

	blocked := waiting
	blocked.MessageID, blocked.Reason, blocked.Error, blocked.Attempts = event.NewID(), "", "", 0

	if _, err := s.Failed.BlockAlone(t.Context(), blocked); err != nil {
		t.Fatal(err)
	}

	if out, code := run(t, url, "publish", "orders.created", strings.Replace(oneOrder, `"o"`, `"unpublished"`, 1)); code != 0 {
		t.Fatal(out)
	}

	for _, c := range []struct{ args, says string }{
		{"orders show nowhere", "there is no order nowhere"},
		{"orders show stopped", "there is no order stopped, but a message on orders.created for it is stopped: order.quantity: is 0, expected 1 to 1000000000 (`millrace failed show 1`)"},
		{"orders cancel stopped", "(`millrace failed show 1`)"},
		{"payments show stopped", "there is no payment of order stopped, but a message on orders.created for it is stopped"},
		{"orders show waiting", "a message on orders.created for it is waiting for its next attempt: division by zero (`millrace failed show 3`)"},
		{"orders show waiting", "a message on orders.created for it is blocked by an earlier one with its key (`millrace failed show 4`)"},
		{"orders show unpublished", "there is no order unpublished, but a message on orders.created for it has been in the outbox since "},
		{"users show alice", "there is no user alice, but a message on user.created for it is stopped"},
		{"users show stopped", "there is no user stopped"},
		{"orders show alice", "there is no order alice"},
	} {
		out := expect(t, url, c.args, exitNotFound, c.says)
		if strings.HasPrefix(c.says, "there is no") && !strings.Contains(c.says, ", but") && strings.Contains(out, ", but") {
			t.Errorf("%s names messages that are about something else:\n%s", c.args, out)
		}
	}
}

func TestExitCodesAreInTheHelpAndTheDocumentation(t *testing.T) {
	t.Parallel()

	page, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}

	help, _ := run(t, "postgres://unused", "help")

	for _, c := range operate.ExitCodes {
		if row := fmt.Sprintf("| %d | %s |", c.Code, c.Meaning); !strings.Contains(string(page), row) {
			t.Errorf("docs/operating.md does not have the line %s", row)
		}

		if !strings.Contains(help, c.Meaning) {
			t.Errorf("the help does not say %q", c.Meaning)
		}
	}
}
