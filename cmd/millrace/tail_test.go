package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// tail runs the command until the test ends and returns what it prints.
func tail(t *testing.T, args ...string) *bufio.Scanner {
	t.Helper()

	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)

	root := newRoot(writer, os.Stderr)
	root.SetArgs(append([]string{"tail"}, args...))

	go func() { done <- root.ExecuteContext(ctx) }()

	t.Cleanup(func() {
		cancel()

		_ = reader.Close()

		if err := <-done; err != nil {
			t.Errorf("tail: %v", err)
		}
	})

	return bufio.NewScanner(reader)
}

func TestTailPresentsATokenOverTLS(t *testing.T) {
	url := pgtest.URL(t)
	certificate, key := brokertest.NewAuthority(t).Issue("millrace.example")
	certFile, keyFile := brokertest.File(t, certificate), brokertest.File(t, key)

	s := apptest.New(t, url, func(c *config.Config) {
		c.HTTP.Authentication, c.HTTP.TLS, c.HTTP.CertFile, c.HTTP.KeyFile = httpapi.AuthenticationRequired, httpapi.TLSFiles, certFile, keyFile
	})
	s.Run()

	for name, value := range map[string]string{"ADDR": s.HTTPAddr(), "AUTHENTICATION": "required", "TLS": "files", "CERT_FILE": certFile, "KEY_FILE": keyFile} {
		t.Setenv("MILLRACE_HTTP__"+name, value)
	}

	expect(t, url, "tail user.created", exitUsage, "rejected http.token: 401 Unauthorized; create a token with `millrace tokens create NAME --role operator`")

	viewer, _ := run(t, url, "tokens", "create", "viewer")
	t.Setenv("MILLRACE_HTTP__TOKEN", strings.TrimSpace(viewer))
	expect(t, url, "tail user.created", exitUsage, "rejected http.token: 403 Forbidden")

	operator, _ := run(t, url, "tokens", "create", "operator", "--role", "operator")
	t.Setenv("MILLRACE_HTTP__TOKEN", strings.TrimSpace(operator))

	lines := tail(t, "user.created", "--database-url", url)
	found := make(chan string, 1)

	go func() {
		lines.Scan()
		found <- lines.Text()
	}()

	pgtest.Eventually(t, "the message passes", func() bool {
		s.Publish("user.created", `{"user":{"id":"`+event.NewID().String()+`","name":"Alice","email":"alice@home.example"}}`)

		select {
		case line := <-found:
			return strings.Contains(line, "alice@home.example")
		default:
			return false
		}
	})
}

func TestTailShowsWhatPasses(t *testing.T) {
	url := pgtest.URL(t)
	s := apptest.New(t, url)
	s.Run()
	t.Setenv("MILLRACE_HTTP__ADDR", s.HTTPAddr())

	const payload = `{"user":{"id":"alice","name":"Alice","email":"alice@home.example"}}`

	lines := tail(t, "user.created", "--json", "--database-url", url)
	found := make(chan operate.Passing, 1)

	go func() {
		if lines.Scan() {
			var p operate.Passing
			if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
				t.Errorf("%v: %s", err, lines.Text())
			}

			found <- p
		}
	}()

	// tail reads messages from the moment it starts, but does not report that moment.
	var got *operate.Passing

	for deadline := time.Now().Add(30 * time.Second); got == nil && time.Now().Before(deadline); {
		id := s.Publish("user.created", payload)

		select {
		case p := <-found:
			got = &p
		case <-time.After(200 * time.Millisecond):
		}

		pgtest.Eventually(t, "the consumer has the message too", func() bool {
			return apptest.Value[int](s, `SELECT count(*) FROM inbox WHERE message_id = $1`, id) == 1
		})
	}

	if got == nil || got.Topic != "user.created" || got.Payload != payload || got.Key != "alice" || got.MessageID == "" {
		t.Errorf("got %+v", got)
	}

	if out, code := run(t, url, "tail", "user.craeted"); code != exitUsage || !strings.Contains(out, "did you mean user.created?") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
