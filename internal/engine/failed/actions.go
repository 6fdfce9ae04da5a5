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

// Check returns the error for which consumer would reject a payload before its
// handler sees it, and the payload's ordering key.
type Check func(consumer string, payload []byte) (key string, err error)

// ErrNoReason reports a discard without a reason.
var ErrNoReason = event.Errorf(event.Invalid, "why: is missing, expected the reason for the discard")

// Actable returns a Conflict error unless the entry is stopped.
func (e Entry) Actable() error {
	if e.State == Stopped {
		return nil
	}

	return event.Errorf(event.Conflict, "message %d is already %s, expected a stopped one", e.ID, cmp.Or(string(e.Resolution), string(e.State)))
}

// ChangedError reports an entry that has changed since the caller read it.
func ChangedError(id int64) error {
	return event.Errorf(event.Changed, "message %d has changed in the meantime: check it again", id)
}

// Actions returns the operator actions on an entry, in order.
func (s *Store) Actions(ctx context.Context, id int64) ([]activity.Action, error) {
	found, err := activity.Of(ctx, s.pool, []int64{id})

	return found[id], err
}

// Edit sets the payload that a stopped entry is requeued with. The original is kept.
// If check rejects the payload, Edit returns the rejection and stores nothing. A
// nonzero revision must match the entry's. Edit records nothing if the payload does
// not change.
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

		var edited []byte // NULL if the payload is the original again
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

// Discard resolves the stopped entries selected by f. It deletes nothing. Like
// Requeue it works in chunks.
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

// Pace limits and reports an action on many entries.
type Pace struct {
	// PerSecond is the maximum number of entries per second; 0 is unlimited.
	PerSecond int
	// Limit is the maximum number of entries examined; 0 is unlimited.
	Limit int
	// DryRun only reports what the action would do.
	DryRun bool
	// OutOfOrder also requeues entries with older stopped entries of their key.
	OutOfOrder bool
	// Progress is called after each step, unless nil.
	Progress func(done, total int)
}

// Outcome is the result of an action, even if it ended early.
type Outcome struct {
	// Selected is the number of stopped entries selected.
	Selected int `json:"selected"`
	Done     int `json:"done"`
	// Refused counts entries that stay stopped; Refusals gives the reasons for the
	// first 100.
	Refused  int       `json:"refused"`
	Refusals []Refusal `json:"refusals"`
	DryRun   bool      `json:"dry_run,omitempty"`
	// Last is the ID of the last entry examined.
	Last int64 `json:"last,omitempty"`
}

// Refusal is the reason why an entry was not requeued.
type Refusal struct {
	ID    int64  `json:"id"`
	Error string `json:"error"`
}

// maxRefusals caps the refusals of an outcome.
const maxRefusals = 100

func (o *Outcome) refuse(id int64, err error) {
	if o.Refused++; len(o.Refusals) < maxRefusals {
		o.Refusals = append(o.Refusals, Refusal{ID: id, Error: err.Error()})
	}
}

// chunkSize is how many entries are processed per transaction.
const chunkSize = 100

// chunkTimeout bounds one transaction, which ignores the end of the caller's context.
const chunkTimeout = 30 * time.Second

type step func(ctx context.Context, tx pgx.Tx, list []Entry, outcome *Outcome) error

// inChunks locks the currently stopped entries selected by f and runs step on them,
// oldest first, with one transaction per chunk.
func (s *Store) inChunks(ctx context.Context, f Filter, pace Pace, step step) (Outcome, error) {
	f.State = Stopped
	outcome := Outcome{Refusals: []Refusal{}, DryRun: pace.DryRun}
	where, args := f.where()

	// Ignore entries added during this run.
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
			return outcome, fmt.Errorf("interrupted: %w", cmp.Or(ctx.Err(), err))
		}

		next := outcome

		taken, err := s.chunk(ctx, f, n, pace.DryRun, step, &next)
		if err != nil {
			return outcome, err
		}

		if len(taken) == 0 { // another operator was faster
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

// chunk runs step once, atomically.
func (s *Store) chunk(ctx context.Context, f Filter, n int, dry bool, step step, outcome *Outcome) (list []Entry, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTimeout)
	defer cancel()

	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		lock := ""

		if !dry {
			lock = ` FOR UPDATE`

			// Serialize operators: otherwise one could overtake the other on a shared
			// key, or they could deadlock on rows.
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

// Exported is an entry with the actions on it.
type Exported struct {
	Entry

	Actions []activity.Action `json:"actions"`
}

// Export calls fn with the entries selected by f and the actions on each, oldest
// first. It holds at most one chunk in memory, and no transaction.
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
