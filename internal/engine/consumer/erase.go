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

// EraseFunc removes the personal data of a person from the tables of a domain
// and returns how many rows it changed.
type EraseFunc func(ctx context.Context, tx pgx.Tx, subject string) (rows int64, err error)

type eraser struct {
	name  string
	erase EraseFunc
}

// OnErase registers a function that Erase calls. Functions run in the order in
// which they are registered, which is the order of their locks.
func (r *Router) OnErase(name string, erase EraseFunc) {
	r.refuseAfterRun("erasure of " + name)
	r.erasers = append(r.erasers, eraser{name: name, erase: erase})
}

// Erasure says what Erase removed.
type Erasure struct {
	Subject string `json:"erased"`
	// Rows counts the rows that domains changed, by the name of the function.
	Rows map[string]int64 `json:"rows"`
	// Withdrawn counts messages that will be neither published nor retried.
	Withdrawn int64 `json:"withdrawn"`
	// Emptied counts failed messages that lost their content.
	Emptied int64 `json:"emptied"`
}

// Erase removes the personal data of a person from the tables of all domains and
// from the messages that Millrace keeps: those of payload types that implement
// event.Personal. It can be repeated, and then removes what has come since, such
// as a late message that failed because the person was erased. It does not reach
// what was published.
func (r *Router) Erase(ctx context.Context, subject string, by activity.Actor) (Erasure, error) {
	done := Erasure{Subject: subject, Rows: map[string]int64{}}

	types, topics := r.personal()
	about := func(payload []byte) bool {
		// A malformed message may have the shape of another topic.
		for _, p := range types {
			if event.SubjectOf(p, payload) == subject {
				return true
			}
		}

		return false
	}

	err := postgres.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		// Handlers lock waiting keys before rows of their domain, so Erase does too.
		withdrawn, emptied, err := failed.Erase(ctx, tx, subject, topics, about)
		if err != nil {
			return err
		}

		for _, e := range r.erasers {
			if done.Rows[e.name], err = e.erase(ctx, tx, subject); err != nil {
				return err
			}
		}

		// Only now, because a handler that held a lock may have added messages.
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

// personal returns the payload types that carry personal data, and their topics.
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
