package failed

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// insert adds e in the given state, unless the message is already stored. The caller
// must hold the key of a waiting message; insert adds or locks the key of a stopped one. It
// adds no key for a message that is already stored: the caller may die before it frees it.
func (s *Store) insert(ctx context.Context, db postgres.Execer, e Entry, state State) (stored bool, err error) {
	payload := e.Payload
	if payload == nil { // a Kafka tombstone; nil would become NULL
		payload = []byte{}
	}

	// Headers.MarshalJSON cannot fail: it escapes what JSON cannot represent.
	headers, _ := e.Headers.MarshalJSON()
	cause, group := causeOf(e)

	tag, err := db.Exec(ctx, `
		WITH held AS (
			INSERT INTO failed_keys AS k (consumer, key) SELECT $1, $16 WHERE $15 = 'stopped' AND $16 <> ''
				AND NOT EXISTS (SELECT FROM failed_messages m WHERE m.consumer = $1 AND m.message_id = $4 AND m.fingerprint = $5)
			ON CONFLICT ON CONSTRAINT failed_keys_pkey DO UPDATE SET due_at = k.due_at)
		INSERT INTO failed_messages (consumer, topic, key, message_id, fingerprint, origin, headers, payload, reason, error, cause, group_id,
			attempts, first_release, last_release, state, failed_key, deliveries, tried_at, awaits_since)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14, $15, CASE WHEN $15 = 'waiting' THEN $16 ELSE nullif($16, '') END,
			CASE WHEN $15 = 'stopped' THEN 1 ELSE 0 END, CASE WHEN $10::text <> '' THEN now() END,
			CASE WHEN $9::text = 'early' THEN now() END)
		ON CONFLICT ON CONSTRAINT failed_messages_once DO NOTHING`,
		e.Consumer, e.Topic, event.Text(e.Key), e.MessageID, event.Fingerprint(e.Payload), e.Origin, string(headers), payload,
		string(e.Reason), storedError(e), cause, group, e.Attempts, event.Text(s.cfg.Release), string(state), StoredKey(e.Key))
	if err != nil {
		return false, fmt.Errorf("storing failed message %s: %w", e.MessageID, err)
	}

	return tag.RowsAffected() > 0, nil
}

func storedError(e Entry) string { return event.Text(event.Shorten(e.Error, maxError)) }

// causeOf returns the cause and the group of a failed message.
func causeOf(e Entry) (cause, group string) {
	if e.Error == "" {
		return "", ""
	}

	cause = Cause(e)

	return cause, groupOf(e.Consumer, e.Reason, cause)
}

// Stop stores e as stopped and sets its ID, group, counts, times and releases. If the
// message is already stored, its row is updated: the message was redelivered before
// its acknowledgement, or it was requeued and failed again, which is recorded as
// reopened. A redelivery does not undo what an operator has decided: a message that was
// applied or discarded stays resolved, and one that was requeued keeps waiting, even if
// only its edited payload can be applied. If e has an ID and has changed since it was
// read, Stop stores nothing: an operator, another replica or an erasure has already
// decided its fate.
func (s *Store) Stop(ctx context.Context, e Entry) error {
	if e.ID == 0 {
		stored, err := s.insert(ctx, s.pool, e, Stopped)
		if err != nil || stored {
			return err
		}
	}

	var keys []Key

	if e.ID == 0 && e.Key != "" {
		keys = []Key{{Consumer: e.Consumer, Key: StoredKey(e.Key)}} // insert added it needlessly
	}

	return s.inTx(ctx, func(tx pgx.Tx) error { return s.stopAgain(ctx, tx, e, keys) })
}

// stopAgain stops a message that is already stored, and frees its key and keys.
func (s *Store) stopAgain(ctx context.Context, tx pgx.Tx, e Entry, keys []Key) (err error) {
	if e.ID == 0 {
		if e.ID, err = findDelivered(ctx, tx, e); err != nil {
			return err
		}

		e.Revision = 0 // a broker delivery stops the row at any revision, unless an operator has decided
	}

	k, waits, err := lockKeyOf(ctx, tx, e.ID)
	if err != nil {
		return err
	}

	was, err := s.stop(ctx, tx, e)
	if err != nil {
		return err
	}

	if was.waitedFor != nil && !waits { // requeued between these two statements
		k, waits = Key{Consumer: e.Consumer, Key: *was.waitedFor}, true
	}

	if was.keyless && e.Key != "" { // an earlier release could not read it
		if err := moveKey(ctx, tx, e, StoredKey(e.Key)); err != nil {
			return err
		}
	}

	if was.decided {
		by := activity.Actor{Who: activity.Service, Why: e.Error}

		err = activity.Record(ctx, tx, by, activity.Action{Action: activity.Reopened, Subject: subjectOf(e), EntryID: &e.ID})
		if err != nil {
			return err
		}
	}

	if waits {
		return free(ctx, tx, append(keys, k)...)
	}

	return free(ctx, tx, keys...)
}

// findDelivered returns the ID of a message that a broker delivered again, or 0.
func findDelivered(ctx context.Context, tx pgx.Tx, e Entry) (id int64, err error) {
	err = tx.QueryRow(ctx, `SELECT id FROM failed_messages WHERE consumer = $1 AND message_id = $2 AND fingerprint = $3`,
		e.Consumer, e.MessageID, event.Fingerprint(e.Payload)).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("reading failed message %s: %w", e.MessageID, err)
	}

	return id, nil
}

// before describes a message before it was stopped.
type before struct {
	// decided is true if an operator had requeued it.
	decided bool
	// waitedFor is the key that it waited for, which the caller must free, or nil.
	waitedFor *string
	// keyless is true if the message is now stopped without a key.
	keyless bool
}

// stop stops the row with e's ID, if it has e's revision. If e has no revision, because a
// broker delivered it, stop only counts the delivery of a message that an operator has
// resolved or requeued.
func (s *Store) stop(ctx context.Context, tx pgx.Tx, e Entry) (was before, err error) {
	cause, group := causeOf(e)

	err = tx.QueryRow(ctx, `
		WITH old AS (
			SELECT id, state, deliveries, CASE WHEN state = 'waiting' THEN failed_key END AS waits_for,
				state = 'resolved' OR $8 = 0 AND state = 'waiting' AND deliveries > 0 AS decided
			FROM failed_messages
			WHERE id = $1 AND ($8 = 0 OR revision = $8) FOR UPDATE
		), counted AS (
			UPDATE failed_messages m SET deliveries = m.deliveries + 1, last_at = now() FROM old WHERE m.id = old.id AND old.decided
		)
		UPDATE failed_messages m
		SET state = 'stopped',
		    deliveries = m.deliveries + 1, attempts = greatest(m.attempts, $2), last_at = now(), tried_at = now(),
		    reason = $3, error = $4, cause = $5, group_id = $6, last_release = $7, revision = m.revision + 1
		FROM old WHERE m.id = old.id AND NOT old.decided
		RETURNING old.state = 'waiting' AND old.deliveries > 0, old.waits_for, m.failed_key IS NULL`,
		e.ID, e.Attempts, string(e.Reason), storedError(e), cause, group, event.Text(s.cfg.Release), e.Revision).
		Scan(&was.decided, &was.waitedFor, &was.keyless)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return was, fmt.Errorf("stopping failed message %d: %w", e.ID, err)
	}

	return was, nil
}

// moveKey gives a stopped message a different key, and locks the key. The caller must
// already have locked the message.
func moveKey(ctx context.Context, tx pgx.Tx, e Entry, key string) error {
	k := Key{Consumer: e.Consumer, Key: key}

	if err := holdKey(ctx, tx, k, nil, nil); err != nil {
		return err
	}

	if _, err := tx.Exec(ctx, `UPDATE failed_messages SET failed_key = $2 WHERE id = $1`, e.ID, key); err != nil {
		return fmt.Errorf("moving failed message %d to key %s: %w", e.ID, key, err)
	}

	if e.FailedKey == "" {
		return nil
	}

	return free(ctx, tx, Key{Consumer: e.Consumer, Key: e.FailedKey})
}

// subjectOf names a message in the action log.
func subjectOf(e Entry) string { return e.Consumer + " " + e.Key }
