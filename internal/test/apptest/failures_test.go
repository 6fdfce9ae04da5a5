package apptest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Earned is a payload whose handler fails.
type Earned struct {
	CustomerID string `json:"customer_id"`
}

// Topic implements event.Payload.
func (Earned) Topic() string { return "loyalty.earned" }

// Key implements event.Payload.
func (e Earned) Key() string { return e.CustomerID }

// Validate implements event.Payload.
func (e Earned) Validate() error { return event.CheckID("customer_id", e.CustomerID) }

// recorder is a testing.TB that records errors.
type recorder struct {
	testing.TB

	mu   sync.Mutex
	text string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.text += fmt.Sprintf(format, args...)
}

func (r *recorder) errors() string {
	r.mu.Lock()
	defer r.mu.Unlock()

	return r.text
}

func TestAPanicFailsTheTestImmediately(t *testing.T) {
	t.Parallel()

	recorded := &recorder{TB: t}
	s := apptest.New(recorded, pgtest.URL(t))

	consumer.On(s.Router, "loyalty.award", func(context.Context, pgx.Tx, event.Event[Earned]) ([]event.Outgoing, error) {
		panic("a bug")
	})
	s.Run()

	started := time.Now()

	s.Publish("loyalty.earned", `{"customer_id": "alice"}`)
	pgtest.Eventually(t, "the test has failed", func() bool { return recorded.errors() != "" })

	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}

	got := recorded.errors()
	for _, want := range []string{"loyalty.award failed with panic", "a bug", "failures_test.go:", "alice"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing from:\n%s", want, got)
		}
	}

	if lines := strings.Count(got, "\n"); lines > 6 {
		t.Errorf("the stack is not readable:\n%s", got)
	}
}
