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

// insert adds e in the given state, unless the message is already stored.
func (s *Store) insert(ctx context.Context, db postgres.Execer, e Entry, state State) (stored bool, err error) {
	payload := e.Payload
	if payload == nil { // a Kafka tombstone; nil would become NULL
		payload = []byte{}
	}

	// Headers.MarshalJSON cannot fail: it escapes what JSON cannot represent.
	headers, _ := e.Headers.MarshalJSON()
	cause, group := causeOf(e)

	tag, err := db.Exec(ctx, `
		INSERT INTO failed_messages (consumer, topic, key, message_id, fingerprint, origin, headers, payload, reason, error, cause, group_id,
			attempts, first_release, last_release, state, waiting_key, deliveries, tried_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14, $15, CASE WHEN $15 = 'waiting' THEN $16 END,
			CASE WHEN $15 = 'stopped' THEN 1 ELSE 0 END, CASE WHEN $10::text <> '' THEN now() END)
		ON CONFLICT ON CONSTRAINT failed_messages_once DO NOTHING`,
		e.Consumer, e.Topic, event.Text(e.Key), e.MessageID, event.Fingerprint(e.Payload), e.Origin, string(headers), payload,
		string(e.Reason), storedError(e), cause, group, e.Attempts, event.Text(s.cfg.Release), string(state), WaitingKey(e.Key))
	if err != nil {
		return false, fmt.Errorf("storing failed message %s: %w", e.MessageID, err)
	}

	return tag.RowsAffected() > 0, nil
}

func storedError(e Entry) string { return event.Text(e.Error[:min(len(e.Error), maxError)]) }

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
// reopened. A discarded message stays discarded. If e has an ID and has changed since
// it was read, Stop stores nothing: an operator, another replica or an erasure has
// already decided on it.
func (s *Store) Stop(ctx context.Context, e Entry) error {
	if e.ID == 0 {
		stored, err := s.insert(ctx, s.pool, e, Stopped)
		if err != nil || stored {
			return err
		}
	}

	return postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		if e.ID == 0 {
			err := tx.QueryRow(ctx, `SELECT id FROM failed_messages WHERE consumer = $1 AND message_id = $2 AND fingerprint = $3`,
				e.Consumer, e.MessageID, event.Fingerprint(e.Payload)).Scan(&e.ID)
			if err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return fmt.Errorf("reading failed message %s: %w", e.MessageID, err)
			}

			e.Revision = 0 // a broker delivery stops the row at any revision
		}

		k, waits, err := lockKeyOf(ctx, tx, e.ID)
		if err != nil {
			return err
		}

		reopened, key, err := s.stop(ctx, tx, e)
		if err != nil {
			return err
		}

		if key != nil && !waits { // requeued between these two statements
			k, waits = Key{Consumer: e.Consumer, Key: *key}, true
		}

		if reopened {
			by := activity.Actor{Who: activity.Service, Why: e.Error}

			err = activity.Record(ctx, tx, by, activity.Action{Action: activity.Reopened, Subject: subjectOf(e), EntryID: &e.ID})
			if err != nil {
				return err
			}
		}

		if waits {
			return free(ctx, tx, k)
		}

		return nil
	})
}

// stop stops the row with the ID of e, if it has the revision of e or e has none. It
// reports whether an operator had decided on the message before, and returns the key
// that it waited for, which the caller must free.
func (s *Store) stop(ctx context.Context, tx pgx.Tx, e Entry) (reopened bool, key *string, err error) {
	cause, group := causeOf(e)

	err = tx.QueryRow(ctx, `
		WITH old AS (
			SELECT id, state, resolution, deliveries, waiting_key FROM failed_messages
			WHERE id = $1 AND ($8 = 0 OR revision = $8) FOR UPDATE
		)
		UPDATE failed_messages m
		SET state = CASE WHEN old.resolution = 'discarded' THEN m.state ELSE 'stopped' END, waiting_key = NULL,
		    resolution = nullif(m.resolution, 'applied'),
		    resolved_at = CASE WHEN old.resolution = 'discarded' THEN m.resolved_at END,
		    deliveries = m.deliveries + 1, attempts = greatest(m.attempts, $2), last_at = now(), tried_at = now(),
		    reason = $3, error = $4, cause = $5, group_id = $6, last_release = $7, revision = m.revision + 1
		FROM old WHERE m.id = old.id
		RETURNING old.state = 'waiting' AND old.deliveries > 0 OR coalesce(old.resolution = 'applied', false), old.waiting_key`,
		e.ID, e.Attempts, string(e.Reason), storedError(e), cause, group, event.Text(s.cfg.Release), e.Revision).Scan(&reopened, &key)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, nil, fmt.Errorf("stopping failed message %d: %w", e.ID, err)
	}

	return reopened, key, nil
}

// subjectOf names a message in the action log.
func subjectOf(e Entry) string { return e.Consumer + " " + e.Key }
