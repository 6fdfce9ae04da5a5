package failed

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Check reports why consumer would reject a payload before its handler sees it,
// and the key that orders it.
type Check func(consumer string, payload []byte) (key string, err error)

// ErrNoReason reports a discard without a reason.
var ErrNoReason = event.Errorf(event.Invalid, "why: is missing, expected the reason of the discard")

// Actable returns a Conflict error unless the entry is stopped.
func (e Entry) Actable() error {
	if e.State == Stopped {
		return nil
	}

	return event.Errorf(event.Conflict, "message %d is %s already, expected a stopped one", e.ID, cmp.Or(string(e.Resolution), string(e.State)))
}

// ChangedError reports an entry that has changed since the caller read it.
func ChangedError(id int64) error {
	return event.Errorf(event.Changed, "message %d has changed meanwhile: look at it again", id)
}

// Actions returns what was done with an entry, in order.
func (s *Store) Actions(ctx context.Context, id int64) ([]activity.Action, error) {
	found, err := activity.Of(ctx, s.pool, []int64{id})

	return found[id], err
}

// Edit sets the payload with which a stopped entry is requeued; the original
// stays. A payload that check refuses is not stored: the error is the rejection.
// With a revision other than 0 the entry must still have it. Nothing is recorded
// when the payload does not change.
func (s *Store) Edit(ctx context.Context, id int64, revision int, payload []byte, by activity.Actor, check Check) (e Entry, err error) {
	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		e, err = get(ctx, tx, id, ` FOR UPDATE`)

		switch {
		case err != nil:
			return err
		case revision != 0 && e.Revision != revision:
			return ChangedError(id)
		case e.State != Stopped:
			return e.Actable()
		}

		if _, err := check(e.Consumer, payload); err != nil {
			return err
		}

		if bytes.Equal(payload, e.Current()) {
			return nil
		}

		var edited []byte // NULL when it is the original again
		if !bytes.Equal(payload, e.Payload) {
			edited = payload
		}

		list, err := entries(ctx, tx, `UPDATE failed_messages SET edited = $2, revision = revision + 1 WHERE id = $1 RETURNING `+columns, id, edited)
		if err != nil {
			return err
		}

		e = list[0]

		return activity.Record(ctx, tx, by, activity.Action{Action: activity.Edited, Subject: subjectOf(e), EntryID: &id, Payload: payload})
	})

	return e, err
}

// Discard resolves the stopped entries that f selects. Nothing is deleted. It
// works in chunks as Requeue does.
func (s *Store) Discard(ctx context.Context, f Filter, by activity.Actor, pace Pace) (Outcome, error) {
	switch {
	case by.Who == "":
		return Outcome{}, activity.ErrNoActor
	case by.Why == "":
		return Outcome{}, ErrNoReason
	}

	return s.inChunks(ctx, f, pace, func(ctx context.Context, tx pgx.Tx, list []Entry, outcome *Outcome) error {
		outcome.Done += len(list)

		if pace.DryRun {
			return nil
		}

		_, err := tx.Exec(ctx, `
			UPDATE failed_messages SET state = 'resolved', resolution = 'discarded', resolved_at = now(), revision = revision + 1
			WHERE id = ANY($1)`, idsOf(list))
		if err != nil {
			return fmt.Errorf("discarding failed messages: %w", err)
		}

		return activity.Record(ctx, tx, by, postgres.Column(list, func(e Entry) activity.Action {
			return activity.Action{Action: activity.Discarded, Subject: subjectOf(e), EntryID: &e.ID}
		})...)
	})
}

func idsOf(list []Entry) []int64 { return postgres.Column(list, func(e Entry) int64 { return e.ID }) }

// Pace bounds and follows an action on many entries.
type Pace struct {
	// PerSecond is how many entries are taken a second, at most; 0 is unlimited.
	PerSecond int
	// Limit is how many entries are looked at, at most; 0 is unlimited.
	Limit int
	// DryRun only reports what would be done.
	DryRun bool
	// OutOfOrder also requeues entries that have older stopped ones of their key.
	OutOfOrder bool
	// Progress is called after each step; it may be nil.
	Progress func(done, total int)
}

// Outcome is what an action did, even if it ended early.
type Outcome struct {
	// Selected is how many stopped entries there were to act on.
	Selected int `json:"selected"`
	Done     int `json:"done"`
	// Refused is how many stay stopped; Refusals says why, for the first 100.
	Refused  int       `json:"refused"`
	Refusals []Refusal `json:"refusals"`
	DryRun   bool      `json:"dry_run,omitempty"`
	// Last is the id of the last entry that was looked at.
	Last int64 `json:"last,omitempty"`
}

// Refusal is why an entry was not requeued.
type Refusal struct {
	ID    int64  `json:"id"`
	Error string `json:"error"`
}

// maxRefusals bounds the refusals of an outcome.
const maxRefusals = 100

func (o *Outcome) refuse(id int64, err error) {
	if o.Refused++; len(o.Refusals) < maxRefusals {
		o.Refusals = append(o.Refusals, Refusal{ID: id, Error: err.Error()})
	}
}

// chunkSize is how many entries are taken in one transaction.
const chunkSize = 100

// chunkTimeout bounds one transaction, which the end of the caller's context
// does not cancel.
const chunkTimeout = 30 * time.Second

type step func(ctx context.Context, tx pgx.Tx, list []Entry, outcome *Outcome) error

// inChunks runs step on the stopped entries that f selects now, oldest first and
// locked, in chunks of a transaction each.
func (s *Store) inChunks(ctx context.Context, f Filter, pace Pace, step step) (Outcome, error) {
	f.State = Stopped
	outcome := Outcome{Refusals: []Refusal{}, DryRun: pace.DryRun}
	where, args := f.where()

	// Entries that are added during this run are not part of it.
	var newest int64

	err := s.pool.QueryRow(ctx, `SELECT count(*), coalesce(max(id), 0) FROM failed_messages WHERE `+where, args...).Scan(&outcome.Selected, &newest)
	if err != nil {
		return outcome, fmt.Errorf("counting failed messages: %w", err)
	}

	left := outcome.Selected
	if pace.Limit > 0 {
		left = min(left, pace.Limit)
	}

	size, limiter := chunkSize, rate.NewLimiter(rate.Inf, 0)
	if pace.PerSecond > 0 {
		size = min(size, pace.PerSecond)
		limiter = rate.NewLimiter(rate.Limit(pace.PerSecond), size)
	}

	f.Before = newest + 1

	for total := left; left > 0; {
		n := min(size, left)

		if err := limiter.WaitN(ctx, n); err != nil {
			return outcome, fmt.Errorf("stopped before the end: %w", cmp.Or(ctx.Err(), err))
		}

		next := outcome

		taken, err := s.chunk(ctx, f, n, pace.DryRun, step, &next)
		if err != nil {
			return outcome, err
		}

		if len(taken) == 0 { // another operator was quicker
			break
		}

		outcome, left = next, left-len(taken)
		outcome.Last = taken[len(taken)-1].ID
		f.After = outcome.Last

		if pace.Progress != nil {
			pace.Progress(total-left, total)
		}
	}

	return outcome, nil
}

// chunk runs step once, completely or not at all.
func (s *Store) chunk(ctx context.Context, f Filter, n int, dry bool, step step, outcome *Outcome) (list []Entry, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTimeout)
	defer cancel()

	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		lock := ""

		if !dry {
			lock = ` FOR UPDATE`

			// Operators take turns, so neither overtakes the other with a key that
			// both requeue, and none waits for rows in a circle.
			if err := postgres.LockInTx(ctx, tx, postgres.LockFailed, ""); err != nil {
				return err
			}
		}

		where, args := f.where(n)

		list, err = entries(ctx, tx, `SELECT `+columns+` FROM failed_messages WHERE `+where+` ORDER BY id LIMIT $1`+lock, args...)
		if err != nil || len(list) == 0 {
			return err
		}

		return step(ctx, tx, list, outcome)
	})

	return list, err
}

// Exported is an entry with what was done with it.
type Exported struct {
	Entry

	Actions []activity.Action `json:"actions"`
}

// Export calls fn with the entries that f selects, oldest first, and what was
// done with each. It holds at most a chunk at a time, and no transaction.
func (s *Store) Export(ctx context.Context, f Filter, fn func(Exported) error) error {
	for {
		list, err := s.list(ctx, columns, f, `ORDER BY id`, chunkSize)
		if err != nil || len(list) == 0 {
			return err
		}

		actions, err := activity.Of(ctx, s.pool, idsOf(list))
		if err != nil {
			return err
		}

		for _, e := range list {
			if err := fn(Exported{Entry: e, Actions: append([]activity.Action{}, actions[e.ID]...)}); err != nil {
				return err
			}
		}

		f.After = list[len(list)-1].ID
	}
}
