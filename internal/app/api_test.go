package app_test

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/apptest"
)

// schemathesisTime allows for a busy machine; a run normally takes 20 seconds.
const schemathesisTime = 5 * time.Minute

// TestSchemathesisFindsNothing checks that all responses of the API match its
// description.
func TestSchemathesisFindsNothing(t *testing.T) {
	t.Parallel()

	path := schemathesis(t)
	s := apptest.Start(t)
	s.ExpectFailures()
	s.Seed()
	s.Publish("orders.created", guide(t, "orders.created"))
	s.WaitForOrder("order_123", "completed")

	for range 20 {
		stopSome(t, s)
	}

	ctx, cancel := context.WithTimeout(t.Context(), schemathesisTime)
	defer cancel()

	var out bytes.Buffer

	cmd := checkAPI(ctx, path, t.TempDir(), "http://"+s.HTTPAddr()+"/api/v1/openapi.json")
	cmd.Stdout, cmd.Stderr = &out, &out

	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()

	if err := stopMoreUntil(t, s, done); err != nil {
		t.Errorf("%v: %v\n%s", err, ctx.Err(), out.String())
	}

	t.Log(out.String()[max(0, out.Len()-2000):])

	for _, action := range []string{"edited", "requeued", "discarded"} {
		if n := apptest.Value[int](s, `SELECT count(*)::int FROM operator_actions WHERE action = $1`, action); n == 0 {
			t.Errorf("nothing was %s: the run did not get that far", action)
		}
	}
}

// schemathesis installs the program and returns its path.
func schemathesis(t *testing.T) string {
	t.Helper()

	python, err := exec.Command("../../scripts/python.sh").Output()
	if err != nil {
		t.Fatalf("installing schemathesis: %v", err)
	}

	return filepath.Join(filepath.Dir(strings.TrimSpace(string(python))), "schemathesis")
}

// checkAPI returns the command that checks an API against its description. The command
// writes into dir.
func checkAPI(ctx context.Context, schemathesis, dir, description string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, schemathesis, "run",
		"--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance",
		"--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--continue-on-failure", "--workers", "2",
		// A slow response does not count as a failure, but a panic does: the response is
		// 500.
		"--request-timeout", "60", "--request-retries", "2", "--suppress-health-check", "all",
		"--report-dir", dir, description)
	cmd.Dir = dir // schemathesis writes its example database here

	return cmd
}

// stopMoreUntil keeps replacing the stopped messages that a run discards or requeues
// until the run is done, and returns the run's error.
func stopMoreUntil(t *testing.T, s *apptest.Service, done <-chan error) error {
	t.Helper()

	more := time.NewTicker(50 * time.Millisecond)
	defer more.Stop()

	for {
		select {
		case <-more.C:
			stopSome(t, s)
			stopExample(t, s)
		case err := <-done:
			return err
		}
	}
}

// stopExample stops the entry in the description's examples again, because the run may
// have requeued or discarded it.
func stopExample(t *testing.T, s *apptest.Service) {
	t.Helper()

	if _, err := s.Pool.Exec(t.Context(), `UPDATE failed_messages SET state = 'stopped', failed_key = NULL, resolution = NULL, resolved_at = NULL WHERE id = 17`); err != nil {
		t.Fatal(err)
	}
}

// stopSome stops one message that can be requeued and one that cannot.
func stopSome(t *testing.T, s *apptest.Service) {
	t.Helper()

	order := "order_" + event.NewID().String()

	for _, stopped := range []struct{ key, payload string }{
		{order, strings.ReplaceAll(guide(t, "orders.created"), "order_123", order)},
		{"", "\xff nonsense"},
	} {
		err := s.Failed.Stop(t.Context(), failed.Entry{
			Consumer: "fulfilment.place", Topic: "orders.created", MessageID: event.NewID(), Origin: "test", Key: stopped.key,
			Headers: event.Headers{"binary": "\xff", "text": "x"}, Payload: []byte(stopped.payload), Reason: event.ReasonFailed,
			Error: fmt.Sprintf("cannot take %d bytes", len(stopped.payload)),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
