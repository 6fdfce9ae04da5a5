package consumer

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// memory says which messages the inbox may have applied and forgotten.
type memory struct {
	// retention is how long the inbox remembers, or 0 if it forgets nothing.
	retention time.Duration
	// created is when the database was created, or nil until that is known. A database
	// younger than retention has forgotten nothing.
	created atomic.Pointer[time.Time]
}

// Remember sets how long the inbox remembers applied messages. A message is stopped if it
// was written to its broker's log longer ago than that and is not in the inbox, because it
// may have been applied. An operator who knows that it has not been applied requeues it.
func (r *Router) Remember(retention time.Duration) {
	r.refuseAfterRun("the inbox retention")
	r.memory.retention = retention
}

// written returns when a message was written to its broker's log, if that is known.
func (d *delivery) written() (at time.Time, known bool) {
	text := d.msg.Metadata.Get(event.HeaderWritten)
	if text == "" { // its broker has no log
		return at, false
	}

	at, err := time.Parse(time.RFC3339Nano, text)

	return at, err == nil
}

// forgotten rejects a message that the inbox may have forgotten. It does not check
// failed messages, because operators decide what becomes of those.
func (r *Router) forgotten(d *delivery) error {
	if d.entry != nil || r.memory.retention == 0 {
		return nil
	}

	written, known := d.written()
	if !known || time.Since(written) <= r.memory.retention {
		return nil
	}

	seen := false

	err := r.untilReadable(func(ctx context.Context) error {
		young, err := r.memory.young(ctx, r.pool)
		if err != nil || young {
			seen = young

			return err
		}

		verdicts, err := inbox.Seen(ctx, r.pool, d.route.Consumer, []inbox.Entry{{ID: d.id, Fingerprint: event.Fingerprint(d.msg.Payload)}}, nil)
		seen = err == nil && verdicts[0] != inbox.Fresh

		return err
	})
	if err != nil || seen {
		return err
	}

	return event.RejectAs(event.ReasonForgotten, fmt.Errorf(
		"record: was written at %s, expected a time within inbox.retention (%s): it may have been applied and forgotten. "+
			"If it has not been applied, requeue it: `millrace failed requeue`", written.Format(time.RFC3339), r.memory.retention))
}

// young reports whether the database is too young to have forgotten anything.
func (m *memory) young(ctx context.Context, pool postgres.Querier) (bool, error) {
	created := m.created.Load()
	if created == nil {
		at, err := postgres.CreatedAt(ctx, pool)
		if err != nil {
			return false, err
		}

		created = &at
		m.created.Store(created)
	}

	return time.Since(*created) <= m.retention, nil
}
