package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Process is what a running service knows about itself.
type Process struct {
	StartedAt    time.Time        `json:"started_at"`
	Brokers      string           `json:"brokers"`
	Dependencies []breaker.State  `json:"dependencies"`
	Consumers    []consumer.State `json:"consumers"`
}

// Process returns what this process knows about itself.
func (o *Operator) Process() Process {
	return Process{
		StartedAt: o.StartedAt.UTC(), Brokers: o.Brokers.Kinds(), Dependencies: o.Dependencies.States(), Consumers: o.Router.States(),
	}
}

// ServeHTTP answers with what this process knows about itself.
func (o *Operator) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")

	_ = json.NewEncoder(w).Encode(o.Process()) // the client is gone
}

// Troubles says by name what does not work at present, and why.
func (p Process) Troubles() map[string]string {
	troubles := make(map[string]string)
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }

	for _, d := range p.Dependencies {
		if !d.Up {
			troubles[d.Name] = fmt.Sprintf("unavailable since %s: %s", stamp(*d.Since), d.Why)
		}
	}

	for _, c := range p.Consumers {
		if c.Pause != nil || len(c.Waits) > 0 {
			troubles[c.Consumer] = Describe(c, stamp)
		}
	}

	return troubles
}

// Facts are what Postgres knows, whether or not a service runs.
type Facts struct {
	// OutboxDue counts the messages to publish now, OutboxScheduled those for
	// later. OldestDue is when the oldest of the former was written.
	OutboxDue       int64      `json:"outbox_due"`
	OldestDue       *time.Time `json:"oldest_due,omitempty"`
	OutboxScheduled int64      `json:"outbox_scheduled"`
	WaitingKeys     int64      `json:"waiting_keys"`
	WaitingMessages int64      `json:"waiting_messages"`
	Stopped         int64      `json:"stopped_messages"`

	Paused []consumer.Pause `json:"paused_consumers"`
}

// Facts asks Postgres.
func (o *Operator) Facts(ctx context.Context) (f Facts, err error) {
	err = o.Pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM outbox WHERE available_at IS NULL),
		       (SELECT min(created_at) FROM outbox WHERE available_at IS NULL),
		       (SELECT count(*) FROM outbox WHERE available_at IS NOT NULL),
		       (SELECT count(*) FROM failed_keys), (SELECT count(*) FROM failed_messages WHERE state = 'waiting' AND waiting_key IS NOT NULL),
		       (SELECT count(*) FROM failed_messages WHERE state = 'stopped')`).
		Scan(&f.OutboxDue, &f.OldestDue, &f.OutboxScheduled, &f.WaitingKeys, &f.WaitingMessages, &f.Stopped)
	if err != nil {
		return f, fmt.Errorf("reading status: %w", err)
	}

	f.Paused, err = consumer.Pauses(ctx, o.Pool)

	return f, err
}

// Status is the state of a service and its database.
type Status struct {
	// Service is nil if the service does not answer; Unreachable says why.
	Service     *Process `json:"service,omitempty"`
	Unreachable string   `json:"unreachable,omitempty"`
	// Database is nil if Postgres does not answer; Away says why.
	Database *Facts `json:"database,omitempty"`
	Away     string `json:"database_unreachable,omitempty"`
	// Transaction has been open for long and holds back vacuum.
	Transaction *upkeep.Transaction `json:"old_transaction,omitempty"`
}

// errTroubled says that a status is not as it should be.
var errTroubled = errors.New("something is paused or unavailable; see above")

// Status asks the service at addr and Postgres. What does not answer is part
// of the status.
func (o *Operator) Status(ctx context.Context, addr string) (s Status) {
	process := &Process{}
	if err := ask(ctx, addr, "/statusz", 0, process); err != nil {
		s.Unreachable = err.Error()
	} else {
		s.Service = process
	}

	facts, err := o.Facts(ctx)
	if err == nil {
		s.Database = &facts
		s.Transaction, err = o.Janitor.Old(ctx)
	}

	if err != nil {
		s.Away = err.Error()
	}

	return s
}

// Err returns an error unless everything works.
func (s Status) Err() error {
	switch {
	case s.Service == nil:
		return errors.New(s.Unreachable)
	case s.Away != "" || len(s.Service.Troubles()) > 0:
		return errTroubled
	default:
		return nil
	}
}

// askTimeout bounds a request to a running service, beyond what the service waits.
const askTimeout = 3 * time.Second

// ask reads a path of the service at addr, which may wait before it responds.
func ask(ctx context.Context, addr, path string, wait time.Duration, response any) error {
	ctx, cancel := context.WithTimeout(ctx, wait+askTimeout)
	defer cancel()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}

	got, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("no service answers at http.addr %s: %w", addr, err)
	}
	defer got.Body.Close() //nolint:errcheck // it is only read

	if err := json.NewDecoder(got.Body).Decode(response); err != nil || got.StatusCode != http.StatusOK {
		return fmt.Errorf("unexpected response from the program at http.addr %s: %s", addr, got.Status)
	}

	return nil
}
