package failed

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Check returns the error with which consumer would reject a payload before its
// handler sees it, and the payload's ordering key.
type Check func(consumer string, payload []byte) (key string, err error)

// ErrNoReason reports a discard without a reason.
var ErrNoReason = event.Errorf(event.Invalid, "why: is missing, expected a reason for the discard")

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

// Edit is a new payload for a stopped entry.
type Edit struct {
	// Revision must match the entry's, unless it is 0.
	Revision int
	Payload  []byte
	// NewKey must be the payload's key if the edit changes the key.
	NewKey string
}

// KeyChange says that an edit changes the key of a message.
type KeyChange struct {
	// From is empty if the message had no readable key.
	From string `json:"from"`
	To   string `json:"to"`
}

// err returns the error that refuses a key change.
func (c KeyChange) err() error {
	from := "from " + c.From
	if c.From == "" {
		from = "from one that could not be read"
	}

	return &event.Error{Kind: event.KeyChange, Detail: c, Message: fmt.Sprintf("the edit changes the key %s to %s; later messages with "+
		"key %s may already have been applied, and there is no record of them: to store the edit, name %s as the new key", from, c.To, c.To, c.To)}
}

// Edit sets the payload that a stopped entry is requeued with. The original is kept.
// If check rejects the payload, Edit returns the rejection and stores nothing. Edit
// refuses to change the key unless the edit names the new one. It records nothing if
// the payload does not change.
func (s *Store) Edit(ctx context.Context, id int64, edit Edit, by activity.Actor, check Check) (e Entry, err error) {
	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		// Serialize with Erase, which locks keys before messages.
		if err := postgres.LockInTx(ctx, tx, postgres.LockFailed, ""); err != nil {
			return err
		}

		e, err = get(ctx, tx, id, ` FOR UPDATE`)

		switch {
		case err != nil:
			return err
		case edit.Revision != 0 && e.Revision != edit.Revision:
			return ChangedError(id)
		case e.State != Stopped:
			return e.Actable()
		}

		key, err := check(e.Consumer, edit.Payload)
		if err != nil {
			return err
		}

		if bytes.Equal(edit.Payload, e.Current()) {
			return nil
		}

		if err := editKey(ctx, tx, e, key, edit.NewKey); err != nil {
			return err
		}

		e.Edited = edit.Payload
		if err := storeEdits(ctx, tx, []Entry{e}, by); err != nil {
			return err
		}

		e, err = get(ctx, tx, id, ``)

		return err
	})

	return e, err
}

// editKey moves e to the key of its new payload, if that differs. Messages with the
// new key that are applied from now on are recorded as overtaking e.
func editKey(ctx context.Context, tx pgx.Tx, e Entry, key, allowed string) error {
	if key == "" || StoredKey(key) == e.FailedKey {
		return nil
	}

	change := KeyChange{From: e.FailedKey, To: key}
	if StoredKey(e.Key) == e.FailedKey {
		change.From = e.Key
	}

	if key != allowed {
		return change.err()
	}

	return moveKey(ctx, tx, e, StoredKey(key))
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
		outcome.did(list)

		if pace.DryRun {
			return nil
		}

		_, err := tx.Exec(ctx, `
			UPDATE failed_messages
			SET state = 'resolved', failed_key = NULL, resolution = 'discarded', resolved_at = now(), revision = revision + 1
			WHERE id = ANY($1)`, idsOf(list))
		if err != nil {
			return fmt.Errorf("discarding failed messages: %w", err)
		}

		if err := free(ctx, tx, keysOf(list)...); err != nil {
			return err
		}

		return activity.Record(ctx, tx, by, postgres.Column(list, func(e Entry) activity.Action {
			return activity.Action{Action: activity.Discarded, Subject: subjectOf(e), EntryID: &e.ID}
		})...)
	})
}

// keysOf returns the keys that entries have in failed_keys.
func keysOf(list []Entry) []Key {
	return postgres.Column(list, func(e Entry) Key { return Key{Consumer: e.Consumer, Key: e.FailedKey} })
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
	// OutOfOrder also requeues entries whose key has older stopped entries.
	OutOfOrder bool
	// Overtaken also requeues entries that are overtaken.
	Overtaken bool
	// Progress is called after each step, unless nil.
	Progress func(done, total int)
}

// Outcome is the result of an action, even if it ended early.
type Outcome struct {
	// Selected is the number of stopped entries selected.
	Selected int `json:"selected"`
	Done     int `json:"done"`
	// Refused counts entries that stay stopped, by reason in RefusedBy; Refusals
	// gives the reasons for the first 100.
	Refused   int                `json:"refused"`
	RefusedBy map[event.Kind]int `json:"refused_by"`
	Refusals  []Refusal          `json:"refusals"`
	// Unchanged counts entries whose payload the edit does not change. Diffs shows its
	// changes to the first entries.
	Unchanged int         `json:"unchanged,omitempty"`
	Diffs     []EntryDiff `json:"diffs,omitempty"`
	// Changed counts selected entries that were no longer stopped when their turn came:
	// someone else was faster.
	Changed int  `json:"changed"`
	DryRun  bool `json:"dry_run,omitempty"`
	// Last is the ID of the last entry examined. Newest is the ID of the newest entry
	// selected.
	Last   int64 `json:"last,omitempty"`
	Newest int64 `json:"-"`
	// Consumers counts the entries that Done counts, by consumer.
	Consumers map[string]int `json:"-"`
}

// Refusal is the reason why an entry was not requeued.
type Refusal struct {
	ID    int64      `json:"id"`
	Kind  event.Kind `json:"kind"`
	Error string     `json:"error"`
	// Overtaken is set if the entry is overtaken.
	Overtaken *Overtaken `json:"overtaken,omitempty"`
}

// maxRefusals caps the refusals of an outcome.
const maxRefusals = 100

func (o *Outcome) refuse(id int64, err error) {
	r := Refusal{ID: id, Kind: cmp.Or(event.KindOf(err), event.Rejected), Error: err.Error()}

	if known, ok := errors.AsType[*event.Error](err); ok {
		if overtaken, ok := known.Detail.(Overtaken); ok {
			r.Overtaken = &overtaken
		}
	}

	o.RefusedBy[r.Kind]++

	if o.Refused++; len(o.Refusals) < maxRefusals {
		o.Refusals = append(o.Refusals, r)
	}
}

// did counts entries that were processed.
func (o *Outcome) did(list []Entry) {
	o.Done += len(list)

	for _, e := range list {
		o.Consumers[e.Consumer]++
	}
}

// chunkSize is the number of entries processed per transaction, and chunkBytes bounds
// their payloads, except that a chunk has at least one entry.
const (
	chunkSize  = 100
	chunkBytes = 16 << 20
)

// chunk selects, in order, the entries of the next chunk. Its size is the first parameter.
func chunk(where string) string {
	return fmt.Sprintf(`SELECT %s FROM failed_messages WHERE %[2]s AND id IN (
		SELECT id FROM (
			SELECT id, sum(bytes) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - bytes AS ahead FROM (
				SELECT id, octet_length(payload) + coalesce(octet_length(edited), 0) AS bytes
				FROM failed_messages WHERE %[2]s ORDER BY id LIMIT $1) AS sized) AS counted
		WHERE ahead < %[3]d)
		ORDER BY id`, columns, where, chunkBytes)
}

// chunkTimeout bounds one transaction, which ignores the end of the caller's context.
const chunkTimeout = 30 * time.Second

type step func(ctx context.Context, tx pgx.Tx, list []Entry, outcome *Outcome) error

// inChunks locks the currently stopped entries selected by f and runs step on them,
// oldest first, with one transaction per chunk.
func (s *Store) inChunks(ctx context.Context, f Filter, pace Pace, step step) (Outcome, error) {
	f.State = Stopped
	outcome := Outcome{Refusals: []Refusal{}, RefusedBy: map[event.Kind]int{}, Consumers: map[string]int{}, DryRun: pace.DryRun}
	where, args := f.where()

	err := s.pool.QueryRow(ctx, `SELECT count(*), coalesce(max(id), 0) FROM failed_messages WHERE `+where, args...).Scan(&outcome.Selected, &outcome.Newest)
	if err != nil {
		return outcome, fmt.Errorf("counting failed messages: %w", err)
	}

	if outcome.Changed, err = s.notStopped(ctx, f); err != nil {
		return outcome, err
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

	f.Before = outcome.Newest + 1 // ignore entries added during this run

	for total := left; left > 0; {
		n := min(size, left)

		if err := limiter.WaitN(ctx, n); err != nil {
			return outcome, fmt.Errorf("interrupted: %w", cmp.Or(ctx.Err(), err))
		}

		next, taken, err := s.chunk(ctx, f, n, pace.DryRun, step, outcome)
		if err != nil {
			return outcome, err
		}

		if len(taken) == 0 { // another operator was faster
			outcome.Changed += left

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

// notStopped returns the number of entries listed by ID in f that are not stopped.
func (s *Store) notStopped(ctx context.Context, f Filter) (n int, err error) {
	if f.IDs == nil || f.After > 0 { // a later part does not count them again
		return 0, nil
	}

	err = s.pool.QueryRow(ctx, `
		SELECT count(DISTINCT id) FROM unnest($1::bigint[]) AS i (id)
		WHERE NOT EXISTS (SELECT FROM failed_messages m WHERE m.id = i.id AND state = 'stopped')`, f.IDs).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting failed messages: %w", err)
	}

	return n, nil
}

// chunk runs step in a transaction, and again if the transaction collides with another.
func (s *Store) chunk(ctx context.Context, f Filter, n int, dry bool, step step, before Outcome) (outcome Outcome, list []Entry, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTimeout)
	defer cancel()

	run := func(tx pgx.Tx) error {
		outcome = before
		outcome.RefusedBy, outcome.Consumers = maps.Clone(before.RefusedBy), maps.Clone(before.Consumers)
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

		list, err = entries(ctx, tx, chunk(where)+lock, args...)
		if err != nil || len(list) == 0 {
			return err
		}

		return step(ctx, tx, list, &outcome)
	}

	for {
		if err = postgres.InTx(ctx, s.pool, run); !postgres.IsContention(err) || ctx.Err() != nil {
			return outcome, list, err
		}
	}
}

// Exported is an entry with the actions on it.
type Exported struct {
	Entry

	Actions []activity.Action `json:"actions"`
	// Overtaken is set if the entry is overtaken.
	Overtaken *Overtaken `json:"overtaken,omitempty"`
}

// Export calls fn with the entries selected by f and the actions on each, oldest
// first. It holds at most one chunk in memory, and no transaction. See Overtaken for
// check.
func (s *Store) Export(ctx context.Context, f Filter, check Check, fn func(Exported) error) error {
	for {
		where, args := f.where(chunkSize)

		list, err := entries(ctx, s.pool, chunk(where), args...)
		if err != nil || len(list) == 0 {
			return err
		}

		actions, err := activity.Of(ctx, s.pool, idsOf(list))
		if err != nil {
			return err
		}

		overtaken, err := s.Overtaken(ctx, list, check)
		if err != nil {
			return err
		}

		for _, e := range list {
			out := Exported{Entry: e, Actions: append([]activity.Action{}, actions[e.ID]...)}
			if o, is := overtaken[e.ID]; is {
				out.Overtaken = &o
			}

			if err := fn(out); err != nil {
				return err
			}
		}

		f.After = list[len(list)-1].ID
	}
}
