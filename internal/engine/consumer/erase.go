package consumer

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// EraseFunc removes a person's data from the tables of a domain and returns the
// number of rows changed.
type EraseFunc func(ctx context.Context, tx pgx.Tx, subject string) (rows int64, err error)

type eraser struct {
	name  string
	erase EraseFunc
}

// OnErase registers a function that Erase calls. Functions run in order of
// registration, which is also their lock order.
func (r *Router) OnErase(name string, erase EraseFunc) {
	r.refuseAfterRun("erasure of " + name)
	r.erasers = append(r.erasers, eraser{name: name, erase: erase})
}

// Erasure reports what Erase removed.
type Erasure struct {
	Subject string `json:"erased"`
	// Rows counts the changed rows by the registered name of the domain.
	Rows map[string]int64 `json:"rows"`
	// Withdrawn counts messages that will no longer be published or retried.
	Withdrawn int64 `json:"withdrawn"`
	// Emptied counts failed messages whose content was removed.
	Emptied int64 `json:"emptied"`
}

// Erase removes a person's data from the tables of all domains and from the stored
// messages whose payload types implement event.Personal. It can be repeated to remove
// data that arrived later, such as a late message that failed because the person had
// been erased. It does not affect messages that were already published.
func (r *Router) Erase(ctx context.Context, subject string, by activity.Actor) (Erasure, error) {
	done := Erasure{Subject: subject, Rows: map[string]int64{}}

	types, topics := r.personal()
	about := func(payload []byte) bool {
		// A malformed message may resemble the payload of another topic.
		for _, p := range types {
			if event.SubjectOf(p, payload) == subject {
				return true
			}
		}

		return false
	}

	err := postgres.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		// Handlers lock waiting keys before domain rows, so Erase does too.
		withdrawn, emptied, err := failed.Erase(ctx, tx, subject, topics, about)
		if err != nil {
			return err
		}

		for _, e := range r.erasers {
			if done.Rows[e.name], err = e.erase(ctx, tx, subject); err != nil {
				return err
			}
		}

		// Withdraw last, because a handler that held a lock may have added messages.
		unpublished, err := outbox.Withdraw(ctx, tx, topics, func(key string, payload []byte) bool { return key == subject || about(payload) })
		if err != nil {
			return err
		}

		done.Withdrawn, done.Emptied = withdrawn+unpublished, emptied

		return activity.Record(ctx, tx, by, activity.Action{Action: activity.Erased, Subject: subject})
	})
	if err != nil {
		return done, fmt.Errorf("erasing %s: %w", subject, err)
	}

	return done, nil
}

// personal returns the payload types with personal data, and their topics.
func (r *Router) personal() (types []event.Personal, topics []string) {
	for _, route := range r.routes {
		for _, payload := range append([]event.Payload{route.Payload}, route.Publishes...) {
			if p, ok := payload.(event.Personal); ok {
				types, topics = append(types, p), append(topics, p.Topic())
			}
		}
	}

	return types, topics
}
