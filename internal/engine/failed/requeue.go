package failed

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Requeue makes the stopped entries selected by f wait and be due immediately. They
// are retried by the consumer in which they failed, and by no other, in order of
// arrival per key across consumers. The following stay stopped: entries that check rejects;
// entries that are overtaken, because they may overwrite what later messages did; and
// entries whose key has an older stopped entry that is neither requeued with
// them nor overtaken, so that order per key is kept. Messages keep their IDs and
// headers, so none is applied twice. If another payload was applied under a message's
// ID, the message gets a new ID, caused by the old one.
//
// Requeue uses one transaction per chunk. When ctx ends it stops between two chunks;
// the outcome reports its progress.
func (s *Store) Requeue(ctx context.Context, f Filter, by activity.Actor, pace Pace, check Check) (Outcome, error) {
	if by.Who == "" {
		return Outcome{}, activity.ErrNoActor
	}

	r := requeue{filter: f, by: by, pace: pace, check: check, refused: map[Key]int64{}}

	return s.inChunks(ctx, f, pace, r.chunk)
}

// requeue is the state of one Requeue call.
type requeue struct {
	filter Filter
	by     activity.Actor
	pace   Pace
	check  Check
	// refused maps a key to its first entry that stays stopped in this run.
	refused map[Key]int64
}

func (r *requeue) chunk(ctx context.Context, tx pgx.Tx, list []Entry, outcome *Outcome) (err error) {
	before := maps.Clone(r.refused)

	defer func() {
		if err != nil { // the transaction runs again
			r.refused = before
		}
	}()

	if !r.pace.DryRun {
		if err := settle(ctx, tx, list); err != nil {
			return err
		}
	}

	known, err := r.read(ctx, tx, list)
	if err != nil {
		return err
	}

	var (
		accepted []Entry
		keys     []string
	)

	for _, e := range list {
		key, err := r.accept(e, known)
		if err != nil {
			outcome.refuse(e.ID, err)

			continue
		}

		if known.verdicts[e.ID] == inbox.Conflict { // another payload was applied under this ID
			id := event.NewID()
			e.AppliedAs = &id
		}

		accepted, keys = append(accepted, e), append(keys, StoredKey(cmp.Or(key, e.ApplyID().String())))
	}

	outcome.did(accepted)

	if r.pace.DryRun || len(accepted) == 0 {
		return nil
	}

	return release(ctx, tx, accepted, keys, r.by)
}

// accept returns the key that e would be applied under, or why e stays stopped.
func (r *requeue) accept(e Entry, k known) (key string, err error) {
	key, err = r.check(e.Consumer, e.Current())
	if err == nil {
		err = r.inOrder(e, k.older[e.ID])
	}

	o, is := e.overtaken(key, k.overtaken)

	// A message that was applied after all overwrites nothing.
	if err == nil && is && !r.pace.Overtaken && k.verdicts[e.ID] != inbox.Duplicate {
		err = o.err()
	}

	if in := (Key{e.Consumer, e.FailedKey}); err != nil && !is && r.refused[in] == 0 {
		r.refused[in] = e.ID
	}

	return key, err
}

// known is what the database knows about the entries of a chunk, by ID.
type known struct {
	overtaken map[int64]Overtaken
	older     map[int64]int64
	verdicts  map[int64]inbox.Verdict
}

func (r *requeue) read(ctx context.Context, tx pgx.Tx, list []Entry) (k known, err error) {
	if k.overtaken, err = overtaken(ctx, tx, list); err != nil {
		return k, err
	}

	if k.older, err = r.older(ctx, tx, list); err != nil {
		return k, err
	}

	k.verdicts, err = seen(ctx, tx, list)

	return k, err
}

// settle waits for the batches that are applying messages with the entries' keys and
// keeps further batches waiting, so that no message overtakes an entry unnoticed.
func settle(ctx context.Context, tx pgx.Tx, list []Entry) error {
	_, err := tx.Exec(ctx, `
		SELECT FROM failed_keys k WHERE (consumer, key) IN (SELECT consumer, failed_key FROM failed_messages WHERE id = ANY($1))
		ORDER BY consumer, key FOR UPDATE`, idsOf(list))
	if err != nil {
		return fmt.Errorf("locking the keys of failed messages: %w", err)
	}

	return nil
}

// inOrder refuses an entry that would overtake an older one with its key.
func (r *requeue) inOrder(e Entry, older int64) error {
	if r.pace.OutOfOrder || e.FailedKey == "" {
		return nil
	}

	if before := cmp.Or(r.refused[Key{e.Consumer, e.FailedKey}], older); before != 0 {
		return event.Errorf(event.Conflict, "is blocked by message %d of the same key, which is still stopped: edit, requeue or discard it first", before)
	}

	return nil
}

// older returns, for each entry, an older stopped entry with its key that is not part
// of this run: the filter does not select it, or this run continues a previous one,
// which left it stopped. An overtaken entry does not count: it is already out of
// order.
func (r *requeue) older(ctx context.Context, tx pgx.Tx, list []Entry) (map[int64]int64, error) {
	if r.pace.OutOfOrder {
		return map[int64]int64{}, nil
	}

	begin := r.filter.After
	f := r.filter
	f.After = 0
	where, args := f.where(idsOf(list), begin)

	found, err := postgres.Map[int64, int64](ctx, tx, `
		SELECT e.id, min(o.id)
		FROM (SELECT id, consumer, failed_key FROM failed_messages WHERE id = ANY($1) AND failed_key IS NOT NULL) AS e
		CROSS JOIN LATERAL (
			SELECT id FROM failed_messages AS m
			WHERE consumer = e.consumer AND failed_key = e.failed_key AND state = 'stopped' AND id < e.id AND (id <= $2 OR NOT (`+where+`))
			  AND NOT EXISTS (SELECT FROM overtaking_messages t WHERE t.consumer = m.consumer AND t.key = m.failed_key AND t.after_id >= m.id)
			ORDER BY id LIMIT 1
		) AS o
		GROUP BY e.id`, args...)
	if err != nil {
		return nil, fmt.Errorf("finding older failed messages: %w", err)
	}

	return found, nil
}

// seen returns the inbox verdict on each payload with the ID under which it would be
// applied.
func seen(ctx context.Context, tx pgx.Tx, list []Entry) (map[int64]inbox.Verdict, error) {
	verdicts := make(map[int64]inbox.Verdict, len(list))

	byConsumer := map[string][]Entry{}
	for _, e := range list {
		byConsumer[e.Consumer] = append(byConsumer[e.Consumer], e)
	}

	for consumer, own := range byConsumer {
		answers, err := inbox.Seen(ctx, tx, consumer, postgres.Column(own, func(e Entry) inbox.Entry {
			return inbox.Entry{ID: e.ApplyID(), Fingerprint: event.Fingerprint(e.Current())}
		}), nil)
		if err != nil {
			return nil, err
		}

		for i, e := range own {
			verdicts[e.ID] = answers[i]
		}
	}

	return verdicts, nil
}

// release makes entries wait for their keys, and makes a key due if one of the entries is
// its first.
func release(ctx context.Context, tx pgx.Tx, list []Entry, keys []string, by activity.Actor) error {
	ids := idsOf(list)
	consumers := postgres.Column(list, func(e Entry) string { return e.Consumer })
	renamed := postgres.Column(list, func(e Entry) *uuid.UUID { return e.AppliedAs })

	batch := &pgx.Batch{}
	batch.Queue(`
		INSERT INTO failed_keys AS k (consumer, key, due_at)
		SELECT DISTINCT consumer, key, now() FROM unnest($1::text[], $2::text[]) AS r (consumer, key) ORDER BY 1, 2
		ON CONFLICT ON CONSTRAINT failed_keys_pkey DO UPDATE SET due_at = coalesce(k.due_at, excluded.due_at)`, consumers, keys)
	batch.Queue(`
		UPDATE failed_messages m SET state = 'waiting', failed_key = r.key, applied_as = r.renamed, tried_at = NULL, awaits_since = NULL, revision = m.revision + 1
		FROM unnest($1::bigint[], $2::text[], $3::uuid[]) AS r (id, key, renamed) WHERE m.id = r.id`, ids, keys, renamed)
	batch.Queue(`
		UPDATE failed_keys k SET due_at = clock_timestamp()
		FROM (SELECT DISTINCT consumer, key FROM unnest($1::text[], $2::text[]) AS r (consumer, key)) AS r
		WHERE k.consumer = r.consumer AND k.key = r.key AND $3::bigint[] @> ARRAY[
			(SELECT min(id) FROM failed_messages m WHERE m.consumer = r.consumer AND m.failed_key = r.key AND m.state = 'waiting')]`,
		consumers, keys, ids)

	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("requeueing failed messages: %w", err)
	}

	crashpoint.At(crashpoint.FailedRequeuing)

	left := keysOf(list)
	for i := range left {
		if left[i].Key == keys[i] {
			left[i].Key = "" // still waits for this key
		}
	}

	if err := free(ctx, tx, slices.DeleteFunc(left, func(k Key) bool { return k.Key == "" })...); err != nil {
		return err
	}

	return activity.Record(ctx, tx, by, postgres.Column(list, func(e Entry) activity.Action {
		id := e.ApplyID()

		return activity.Action{Action: activity.Requeued, Subject: subjectOf(e), EntryID: &e.ID, MessageID: &id}
	})...)
}
