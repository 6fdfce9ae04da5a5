package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/consumer"
)

// Status is what a running process knows of itself: the answer of /statusz.
type Status struct {
	StartedAt    time.Time        `json:"started_at"`
	Brokers      string           `json:"brokers"`
	Dependencies []breaker.State  `json:"dependencies"`
	Consumers    []consumer.State `json:"consumers"`
}

func (s *Service) status() Status {
	return Status{
		StartedAt: s.startedAt.UTC(), Brokers: s.Brokers.Kinds(), Dependencies: s.Dependencies.States(), Consumers: s.Router.States(),
	}
}

func (s *Service) serveStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")

	_ = json.NewEncoder(w).Encode(s.status()) // the client is gone: nobody to tell
}

// troubles says what is paused and why, for /readyz. The service does its work
// for the rest.
func (s *Service) troubles() map[string]string {
	troubles := make(map[string]string)

	for _, d := range s.Dependencies.States() {
		if !d.Up {
			troubles[d.Name] = fmt.Sprintf("unavailable since %s: %s", d.Since.Format(time.RFC3339), d.Why)
		}
	}

	for _, c := range s.Router.States() {
		switch {
		case c.Pause != nil:
			troubles[c.Consumer] = fmt.Sprintf("paused by %s since %s: %s", c.Pause.Who, c.Pause.At.UTC().Format(time.RFC3339), c.Pause.Why)
		case len(c.Waits) > 0:
			troubles[c.Consumer] = "waits for " + strings.Join(c.Waits, " and ")
		}
	}

	return troubles
}

// Facts are what Postgres knows, whether or not a process runs.
type Facts struct {
	// OutboxDue counts messages to be published now, OutboxScheduled those for
	// later; OldestDue is since when the first of them is there.
	OutboxDue       int64      `json:"outbox_due"`
	OldestDue       *time.Time `json:"oldest_due,omitempty"`
	OutboxScheduled int64      `json:"outbox_scheduled"`
	ParkedKeys      int64      `json:"parked_keys"`
	ParkedMessages  int64      `json:"parked_messages"`
	PoisonOpen      int64      `json:"poison_open"`

	Paused []consumer.Pause `json:"paused_consumers"`
}

// Facts asks Postgres.
func (s *Service) Facts(ctx context.Context) (f Facts, err error) {
	err = s.Pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM outbox WHERE available_at IS NULL),
		       (SELECT min(created_at) FROM outbox WHERE available_at IS NULL),
		       (SELECT count(*) FROM outbox WHERE available_at IS NOT NULL),
		       (SELECT count(*) FROM parked_keys), (SELECT count(*) FROM parked),
		       (SELECT count(*) FROM poison WHERE resolution IS NULL)`).
		Scan(&f.OutboxDue, &f.OldestDue, &f.OutboxScheduled, &f.ParkedKeys, &f.ParkedMessages, &f.PoisonOpen)
	if err != nil {
		return f, fmt.Errorf("asking postgres: %w", err)
	}

	f.Paused, err = consumer.Pauses(ctx, s.Pool)

	return f, err
}
