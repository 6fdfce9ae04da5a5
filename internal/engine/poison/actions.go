package poison

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Check reports why consumer would reject a payload before its handler sees
// it, and the key that orders it.
type Check func(consumer string, payload []byte) (key string, err error)

// Actor is who acts, and why.
type Actor struct {
	Who string
	Why string
}

// Action is what was done with an entry.
type Action struct {
	// Action is edited, requeued, discarded or, by the service itself, reopened.
	Action string    `json:"action"`
	Who    string    `json:"who"`
	Why    string    `json:"why"`
	At     time.Time `json:"at"`
	// Payload is that after an edit.
	Payload []byte `json:"payload,omitempty"`
	// MessageID is the id under which the message was requeued.
	MessageID *uuid.UUID `json:"message_id,omitempty"`
}

// Errors of actions.
var (
	// ErrNoReason says that a discard needs one.
	ErrNoReason = errors.New("discarding poisoned messages: a reason is missing")
	// ErrNoActor says that nobody acts.
	ErrNoActor = errors.New("acting on poisoned messages: who acts is missing")
)

// ResolvedError says that somebody has decided on the entry already.
type ResolvedError struct {
	ID         int64
	Resolution Resolution
}

func (e *ResolvedError) Error() string {
	return fmt.Sprintf("poison entry %d is %s already", e.ID, e.Resolution)
}

// ChangedError says that the entry is no longer what the caller has seen.
type ChangedError struct{ ID int64 }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("poison entry %d was changed meanwhile: look at it again", e.ID)
}

// Actions returns what was done with an entry, in order.
func (s *Store) Actions(ctx context.Context, id int64) ([]Action, error) {
	found, err := s.actionsOf(ctx, []int64{id})

	return found[id], err
}

func (s *Store) actionsOf(ctx context.Context, ids []int64) (map[int64][]Action, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT entry_id, action, who, why, acted_at, payload, message_id FROM poison_actions
		WHERE entry_id = ANY($1) ORDER BY entry_id, id`, ids)
	if err != nil {
		return nil, fmt.Errorf("reading actions on poison entries: %w", err)
	}

	found := make(map[int64][]Action, len(ids))

	for rows.Next() {
		var (
			id int64
			a  Action
		)

		if err := rows.Scan(&id, &a.Action, &a.Who, &a.Why, &a.At, &a.Payload, &a.MessageID); err != nil {
			return nil, fmt.Errorf("reading actions on poison entries: %w", err)
		}

		found[id] = append(found[id], a)
	}

	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading actions on poison entries: %w", err)
	}

	return found, nil
}

// Edit sets the payload with which an open entry is requeued; the original
// stays as it came. A payload that check refuses is not stored: the error is
// the rejection. With a revision other than 0 the entry must still have it.
// Nothing is recorded when the payload is the same as before.
func (s *Store) Edit(ctx context.Context, id int64, revision int, payload []byte, by Actor, check Check) (Entry, error) {
	if by.Who == "" {
		return Entry{}, ErrNoActor
	}

	var entry Entry

	err := postgres.InTx(ctx, s.pool, func(tx pgx.Tx) (err error) {
		rows, err := tx.Query(ctx, `SELECT `+columns+` FROM poison WHERE id = $1 FOR UPDATE`, id)
		if err != nil {
			return fmt.Errorf("editing poison entry %d: %w", id, err)
		}

		entry, err = one(rows, id)
		if err != nil {
			return err
		}

		switch {
		case revision != 0 && entry.Revision != revision:
			return &ChangedError{ID: id}
		case entry.Resolution != "":
			return &ResolvedError{ID: id, Resolution: entry.Resolution}
		}

		if _, err := check(entry.Consumer, payload); err != nil {
			return err
		}

		if bytes.Equal(payload, entry.Current()) {
			return nil
		}

		var edited []byte // NULL when it is the original again
		if !bytes.Equal(payload, entry.Payload) {
			edited = payload
		}

		rows, err = tx.Query(ctx, `UPDATE poison SET edited = $2, revision = revision + 1 WHERE id = $1 RETURNING `+columns, id, edited)
		if err != nil {
			return fmt.Errorf("editing poison entry %d: %w", id, err)
		}

		entry, err = one(rows, id)
		if err != nil {
			return err
		}

		_, err = tx.Exec(ctx, `INSERT INTO poison_actions (entry_id, action, who, why, payload) VALUES ($1, 'edited', $2, $3, $4)`,
			id, event.Text(by.Who), event.Text(by.Why), payload)
		if err != nil {
			return fmt.Errorf("recording the edit of poison entry %d: %w", id, err)
		}

		return nil
	})

	return entry, err
}

// Pace bounds and follows an action on many entries.
type Pace struct {
	// PerSecond is how many entries are taken a second, at most; 0 is as many as
	// can be.
	PerSecond int
	// Limit is how many entries are looked at, at most; 0 is all.
	Limit int
	// DryRun only tells what would be done.
	DryRun bool
	// OutOfOrder requeues also what has older open entries of its key.
	OutOfOrder bool
	// Progress is called after each step; it may be nil.
	Progress func(done, total int)
}

// Outcome is what an action did, also when it was broken off.
type Outcome struct {
	// Selected is how many open entries there were to act on.
	Selected int `json:"selected"`
	Done     int `json:"done"`
	// Refused is how many stay open; Refusals says why, for the first 100.
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

// Requeue sends the open entries that f selects to the consumers that they
// failed in, and to no other, through the outbox, in the order of arrival. What
// check refuses stays open, and so does what is behind an older open entry of
// its key that is not requeued with it: order per key is kept. Messages keep
// their ids and headers, so none is applied twice; one whose id was applied with
// another body gets a new id, caused by the old one.
//
// It works in chunks of a transaction each. When ctx ends it stops between two
// of them; then as always the outcome says how far it got.
func (s *Store) Requeue(ctx context.Context, f Filter, by Actor, pace Pace, check Check) (Outcome, error) {
	if by.Who == "" {
		return Outcome{}, ErrNoActor
	}

	q := requeue{store: s, filter: f, by: by, pace: pace, check: check, held: map[order]int64{}}

	outcome, err := s.each(ctx, f, pace, q.chunk)
	if outcome.Done > 0 && !pace.DryRun {
		// A hint to relays, which poll anyway.
		if _, notifyErr := s.pool.Exec(context.WithoutCancel(ctx), `SELECT pg_notify($1, '')`, outbox.Channel); err == nil && notifyErr != nil {
			err = fmt.Errorf("notifying relays: %w", notifyErr)
		}
	}

	return outcome, err
}

// Discard closes the open entries that f selects. Nothing is deleted. It works
// in chunks as Requeue does.
func (s *Store) Discard(ctx context.Context, f Filter, by Actor, pace Pace) (Outcome, error) {
	switch {
	case by.Who == "":
		return Outcome{}, ErrNoActor
	case by.Why == "":
		return Outcome{}, ErrNoReason
	}

	return s.each(ctx, f, pace, func(ctx context.Context, tx pgx.Tx, entries []Entry, outcome *Outcome) error {
		outcome.Done += len(entries)

		if pace.DryRun {
			return nil
		}

		ids := make([]int64, len(entries))
		for i, e := range entries {
			ids[i] = e.ID
		}

		_, err := tx.Exec(ctx, `
			WITH discarded AS (
				UPDATE poison SET resolution = 'discarded', resolved_at = now(), revision = revision + 1 WHERE id = ANY($1) RETURNING id
			)
			INSERT INTO poison_actions (entry_id, action, who, why) SELECT id, 'discarded', $2, $3 FROM discarded ORDER BY id`,
			ids, event.Text(by.Who), event.Text(by.Why))
		if err != nil {
			return fmt.Errorf("discarding poisoned messages: %w", err)
		}

		return nil
	})
}

// chunkSize is how many entries are taken in one transaction.
const chunkSize = 100

// chunkTimeout bounds one transaction, which the end of the caller's context
// does not break off.
const chunkTimeout = 30 * time.Second

// turn is the advisory lock of whoever acts, for a chunk: "mlpq" in ASCII. Two
// operators take turns, so neither overtakes the other with a key that both
// requeue, and none waits for rows in a circle.
const turn = 0x6d6c7071

// each gives step the open entries that are there now, oldest first, locked, a
// chunk a transaction.
func (s *Store) each(ctx context.Context, f Filter, pace Pace,
	step func(ctx context.Context, tx pgx.Tx, entries []Entry, outcome *Outcome) error,
) (Outcome, error) {
	f.Resolution = Open
	outcome := Outcome{Refusals: []Refusal{}, DryRun: pace.DryRun}
	where, args := f.where()

	// What comes later, or comes again, is not for this run.
	var newest int64

	err := s.pool.QueryRow(ctx, `SELECT count(*), coalesce(max(id), 0) FROM poison WHERE `+where, args...).Scan(&outcome.Selected, &newest)
	if err != nil {
		return outcome, fmt.Errorf("counting poisoned messages: %w", err)
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
			return outcome, stopped(ctx, err)
		}

		next := outcome

		taken, err := s.take(ctx, f, n, pace.DryRun, func(ctx context.Context, tx pgx.Tx, entries []Entry) error {
			return step(ctx, tx, entries, &next)
		})
		if err != nil {
			return outcome, err
		}

		if len(taken) == 0 { // somebody else was quicker
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

// stopped is the error of a run that was broken off.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}

	return fmt.Errorf("stopped before the end: %w", err)
}

// take runs one chunk, whole or not at all.
func (s *Store) take(ctx context.Context, f Filter, n int, dry bool, step func(context.Context, pgx.Tx, []Entry) error) (entries []Entry, err error) {
	if ctx.Err() != nil {
		return nil, stopped(ctx, nil)
	}

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTimeout)
	defer cancel()

	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		lock := ""

		if !dry {
			lock = ` FOR UPDATE`

			if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, turn); err != nil {
				return fmt.Errorf("waiting for the turn: %w", err)
			}
		}

		where, args := f.where(n)

		rows, err := tx.Query(ctx, `SELECT `+columns+` FROM poison WHERE `+where+` ORDER BY id LIMIT $1`+lock, args...)
		if err != nil {
			return fmt.Errorf("reading poison queue: %w", err)
		}

		entries, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Entry])
		if err != nil {
			return fmt.Errorf("reading poison queue: %w", err)
		}

		if len(entries) == 0 {
			return nil
		}

		return step(ctx, tx, entries)
	})

	return entries, err
}

// order is what keeps messages in order: the key, for a consumer.
type order struct{ consumer, key string }

// requeue is one run of Requeue.
type requeue struct {
	store  *Store
	filter Filter
	by     Actor
	pace   Pace
	check  Check
	// held has the first entry of an order that stays open in this run.
	held map[order]int64
}

func (q *requeue) chunk(ctx context.Context, tx pgx.Tx, entries []Entry, outcome *Outcome) error {
	older, err := q.older(ctx, tx, entries)
	if err != nil {
		return err
	}

	verdicts, err := seen(ctx, tx, entries)
	if err != nil {
		return err
	}

	var (
		returns []outbox.Return
		ids     []int64
	)

	for _, e := range entries {
		in := order{e.Consumer, e.Key}

		key, err := q.check(e.Consumer, e.Current())

		switch before := q.held[in]; {
		case err != nil:
		case q.pace.OutOfOrder || e.Key == "":
		case before != 0:
			err = &BehindError{Before: before}
		case older[e.ID] != 0:
			err = &BehindError{Before: older[e.ID]}
		}

		if err != nil {
			outcome.refuse(e.ID, err)

			if q.held[in] == 0 {
				q.held[in] = e.ID
			}

			continue
		}

		outcome.Done++

		ids = append(ids, e.ID)
		returns = append(returns, returned(e, cmp.Or(key, e.Key), verdicts[e.ID]))
	}

	if q.pace.DryRun || len(ids) == 0 {
		return nil
	}

	if err := outbox.AppendReturns(ctx, tx, returns); err != nil {
		return err
	}

	return q.record(ctx, tx, ids, returns)
}

// BehindError says that an older entry of the same key is open and is not
// requeued with this one.
type BehindError struct{ Before int64 }

func (e *BehindError) Error() string {
	return fmt.Sprintf("is behind entry %d of the same key, which stays open: mend, requeue or discard that first", e.Before)
}

// older returns for each entry an older open one of its key that is not in this
// run: it is not selected, or a run before, of which this is the next part, has
// left it.
func (q *requeue) older(ctx context.Context, tx pgx.Tx, entries []Entry) (map[int64]int64, error) {
	if q.pace.OutOfOrder {
		return map[int64]int64{}, nil
	}

	ids := make([]int64, len(entries))
	for i, e := range entries {
		ids[i] = e.ID
	}

	begin := q.filter.After
	f := q.filter
	f.After, f.Resolution = 0, ""
	where, args := f.where(ids, begin)

	rows, err := tx.Query(ctx, `
		SELECT e.id, min(o.id)
		FROM (SELECT id, consumer, key FROM poison WHERE id = ANY($1) AND key <> '') AS e
		CROSS JOIN LATERAL (
			SELECT id FROM poison
			WHERE hashtextextended(key, 0) = hashtextextended(e.key, 0) AND id < e.id AND resolution IS NULL
			  AND key = e.key AND consumer = e.consumer AND (id <= $2 OR NOT (`+where+`))
			ORDER BY id LIMIT 1
		) AS o
		GROUP BY e.id`, args...)
	if err != nil {
		return nil, fmt.Errorf("looking for older poison entries: %w", err)
	}

	return pairs[int64](rows)
}

// seen says of each entry what its payload is to the inbox, under the id with
// which it would be requeued.
func seen(ctx context.Context, tx pgx.Tx, entries []Entry) (map[int64]inbox.Verdict, error) {
	verdicts := make(map[int64]inbox.Verdict, len(entries))

	for consumer, own := range byConsumer(entries) {
		asked := make([]inbox.Entry, len(own))
		for i, e := range own {
			asked[i] = inbox.Entry{ID: e.again(), Fingerprint: event.Fingerprint(e.Current())}
		}

		answers, err := inbox.Seen(ctx, tx, consumer, asked)
		if err != nil {
			return nil, err
		}

		for i, e := range own {
			verdicts[e.ID] = answers[i]
		}
	}

	return verdicts, nil
}

func byConsumer(entries []Entry) map[string][]Entry {
	grouped := map[string][]Entry{}
	for _, e := range entries {
		grouped[e.Consumer] = append(grouped[e.Consumer], e)
	}

	return grouped
}

// again is the id under which the entry is requeued, unless that is used up.
func (e Entry) again() uuid.UUID {
	if e.RequeuedAs != nil {
		return *e.RequeuedAs
	}

	return e.MessageID
}

// returned makes the outbox row of an entry.
func returned(e Entry, key string, verdict inbox.Verdict) outbox.Return {
	meta := event.MetaOf(e.MessageID, e.Headers)

	meta.ID = e.again()
	if verdict == inbox.Conflict { // the id belongs to another body, which was applied
		meta.ID = event.NewID()
	}

	if meta.ID != e.MessageID {
		meta.Causation = e.MessageID
	}

	headers := maps.Clone(e.Headers)
	if e.Attempts > 0 {
		if headers == nil {
			headers = event.Headers{}
		}

		headers[event.HeaderAttempts] = strconv.Itoa(e.Attempts)
	}

	return outbox.Return{
		Message: event.Message{ID: meta.ID, Topic: outbox.Direct(e.Consumer), Key: key, Headers: headers, Payload: e.Current()},
		Meta:    meta,
	}
}

func (q *requeue) record(ctx context.Context, tx pgx.Tx, ids []int64, returns []outbox.Return) error {
	messages, prints := make([]uuid.UUID, len(ids)), make([]int64, len(ids))
	for i, r := range returns {
		messages[i], prints[i] = r.ID, event.Fingerprint(r.Payload)
	}

	_, err := tx.Exec(ctx, `
		WITH requeued AS (
			UPDATE poison p
			SET resolution = 'requeued', resolved_at = now(), requeued_as = r.message, requeued_fingerprint = r.print, revision = p.revision + 1
			FROM unnest($1::bigint[], $2::uuid[], $3::bigint[]) AS r (id, message, print)
			WHERE p.id = r.id
			RETURNING p.id, r.message
		)
		INSERT INTO poison_actions (entry_id, action, who, why, message_id)
		SELECT id, 'requeued', $4, $5, message FROM requeued ORDER BY id`,
		ids, messages, prints, event.Text(q.by.Who), event.Text(q.by.Why))
	if err != nil {
		return fmt.Errorf("requeueing poisoned messages: %w", err)
	}

	return nil
}

func pairs[V any](rows pgx.Rows) (map[int64]V, error) {
	found := map[int64]V{}

	var (
		id    int64
		value V
	)

	_, err := pgx.ForEachRow(rows, []any{&id, &value}, func() error {
		found[id] = value

		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for older poison entries: %w", err)
	}

	return found, nil
}

// Exported is an entry with what was done with it.
type Exported struct {
	Entry

	Actions []Action `json:"actions"`
}

// Export gives fn the entries that f selects, oldest first, with what was done
// with each. It holds a few hundred at a time, and no transaction.
func (s *Store) Export(ctx context.Context, f Filter, fn func(Exported) error) error {
	for {
		where, args := f.where(chunkSize)

		rows, err := s.pool.Query(ctx, `SELECT `+columns+` FROM poison WHERE `+where+` ORDER BY id LIMIT $1`, args...)
		if err != nil {
			return fmt.Errorf("reading poison queue: %w", err)
		}

		entries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Entry])
		if err != nil {
			return fmt.Errorf("reading poison queue: %w", err)
		}

		if len(entries) == 0 {
			return nil
		}

		ids := make([]int64, len(entries))
		for i, e := range entries {
			ids[i] = e.ID
		}

		actions, err := s.actionsOf(ctx, ids)
		if err != nil {
			return err
		}

		for _, e := range entries {
			if err := fn(Exported{Entry: e, Actions: append([]Action{}, actions[e.ID]...)}); err != nil {
				return err
			}
		}

		f.After = ids[len(ids)-1]
	}
}
