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
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Process is the state of a running service as seen by itself.
type Process struct {
	StartedAt    time.Time        `json:"started_at"`
	Brokers      string           `json:"brokers"`
	Dependencies []breaker.State  `json:"dependencies"`
	Consumers    []consumer.State `json:"consumers"`
}

// Process returns the state of this process.
func (o *Operator) Process() Process {
	return Process{
		StartedAt: o.StartedAt.UTC(), Brokers: o.Brokers.Kinds(), Dependencies: o.Dependencies.States(), Consumers: o.Router.States(),
	}
}

// ServeHTTP writes the state of this process.
func (o *Operator) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")

	_ = json.NewEncoder(w).Encode(o.Process()) // fails only if the client is gone
}

// Troubles returns what is not working, and why, by name.
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

// Facts is the state stored in Postgres, which does not depend on a running service.
type Facts struct {
	// OutboxDue counts the messages due for publishing, OutboxScheduled those
	// scheduled for later. OldestDue is the creation time of the oldest due message.
	OutboxDue       int64      `json:"outbox_due"`
	OldestDue       *time.Time `json:"oldest_due,omitempty"`
	OutboxScheduled int64      `json:"outbox_scheduled"`
	WaitingKeys     int64      `json:"waiting_keys"`
	WaitingMessages int64      `json:"waiting_messages"`
	Stopped         int64      `json:"stopped_messages"`

	Paused []consumer.Pause `json:"paused_consumers"`
}

// Facts reads the facts from Postgres.
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
	// Service is nil if the service does not respond; Unreachable is the reason.
	Service     *Process `json:"service,omitempty"`
	Unreachable string   `json:"unreachable,omitempty"`
	// Database is nil if Postgres does not respond; Away is the reason.
	Database *Facts `json:"database,omitempty"`
	Away     string `json:"database_unreachable,omitempty"`
	// Transaction is a long-running transaction that holds back vacuum.
	Transaction *upkeep.Transaction `json:"old_transaction,omitempty"`
}

// errTroubled reports an unhealthy status.
var errTroubled = errors.New("something is paused or unavailable; see above")

// Status queries the service at addr and Postgres. A failure of either is part of the
// status.
func (o *Operator) Status(ctx context.Context, addr string) (s Status) {
	process := &Process{}
	if err := ask(ctx, addr, "/statusz", 0, process); err != nil {
		s.Unreachable = scrub.Text(err.Error())
	} else {
		s.Service = process
	}

	facts, err := o.Facts(ctx)
	if err == nil {
		s.Database = &facts
		s.Transaction, err = o.Janitor.Old(ctx)
	}

	if err != nil {
		s.Away = scrub.Text(err.Error())
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

// askTimeout bounds a request to a running service, not counting the time that the
// service waits.
const askTimeout = 3 * time.Second

// ask sends a GET request to the service at addr, which may wait before it responds.
func ask(ctx context.Context, addr, path string, wait time.Duration, response any) error {
	ctx, cancel := context.WithTimeout(ctx, wait+askTimeout)
	defer cancel()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}

	got, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("no service responds at http.addr %s: %w", addr, err)
	}
	defer got.Body.Close() //nolint:errcheck // only read from

	if err := json.NewDecoder(got.Body).Decode(response); err != nil || got.StatusCode != http.StatusOK {
		return fmt.Errorf("unexpected response from the program at http.addr %s: %s", addr, got.Status)
	}

	return nil
}
