package failed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// QueueWaiting adds a query to batch that finds which of the keys are waiting; see
// WaitingKey. The result is filled when the batch runs. The rows stay locked until
// the transaction ends, so that no key is freed before messages are blocked by it.
func QueueWaiting(batch *pgx.Batch, consumer string, keys []string) (waiting map[string]bool) {
	waiting = map[string]bool{}

	batch.Queue(`
		SELECT key FROM failed_keys WHERE consumer = $1 AND key = ANY($2)
		ORDER BY key FOR KEY SHARE`, consumer, keys).
		Query(func(rows pgx.Rows) error {
			var key string

			_, err := pgx.ForEachRow(rows, []any{&key}, func() error {
				waiting[key] = true

				return nil
			})

			return err
		})

	return waiting
}

// Block stores messages as blocked by the waiting messages of their keys. A message
// that is already stored is not changed. The caller must hold the keys; see
// QueueWaiting.
func (s *Store) Block(ctx context.Context, tx pgx.Tx, list []Entry) error {
	for _, e := range list {
		if _, err := s.insert(ctx, tx, e, Waiting); err != nil {
			return err
		}
	}

	return nil
}

// BlockAlone is Block for one message, in its own transaction. It returns false if
// the key is no longer waiting.
func (s *Store) BlockAlone(ctx context.Context, e Entry) (blocked bool, err error) {
	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		waiting := QueueWaiting(batch, e.Consumer, []string{WaitingKey(e.Key)})

		if err := tx.SendBatch(ctx, batch).Close(); err != nil || len(waiting) == 0 {
			return err
		}

		blocked = true

		return s.Block(ctx, tx, []Entry{e})
	})

	return blocked, err
}

// Park stores e, which has failed e.Attempts times and most recently with e.Error, as
// waiting for its next attempt. A message with an ID is already waiting: Park
// postpones its next attempt, unless the message has changed since e was read. A
// stored message that is not waiting is not changed, because its fate is an
// operator's decision.
func (s *Store) Park(ctx context.Context, e Entry, wait time.Duration) error {
	return postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		if e.ID != 0 {
			return s.parkAgain(ctx, tx, e, wait)
		}

		// A key that is already waiting is locked but not changed: without the lock
		// it could be freed before the message is stored.
		k := Key{Consumer: e.Consumer, Key: WaitingKey(e.Key)}

		_, err := tx.Exec(ctx, `
			INSERT INTO failed_keys AS k (consumer, key, due_at) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second')
			ON CONFLICT ON CONSTRAINT failed_keys_pkey DO UPDATE SET due_at = k.due_at`, k.Consumer, k.Key, wait.Seconds())
		if err != nil {
			return fmt.Errorf("parking key %s: %w", e.Key, err)
		}

		stored, err := s.insert(ctx, tx, e, Waiting)
		if err != nil || stored {
			return err
		}

		return free(ctx, tx, k)
	})
}

func (s *Store) parkAgain(ctx context.Context, tx pgx.Tx, e Entry, wait time.Duration) error {
	k, waits, err := lockKeyOf(ctx, tx, e.ID)
	if err != nil || !waits {
		return err // skipped, withdrawn or settled by another replica: the messages that it blocked need not wait
	}

	cause, group := causeOf(e)

	tag, err := tx.Exec(ctx, `
		UPDATE failed_messages
		SET attempts = $2, reason = $3, error = $4, cause = $5, group_id = $6, last_release = $7, tried_at = now(), last_at = now(), revision = revision + 1
		WHERE id = $1 AND state = 'waiting' AND revision = $8`,
		e.ID, e.Attempts, string(e.Reason), storedError(e), cause, group, event.Text(s.cfg.Release), e.Revision)
	if err != nil {
		return fmt.Errorf("parking message %s again: %w", e.MessageID, err)
	}

	if tag.RowsAffected() == 0 {
		return nil // whoever changed it also set the due time
	}

	// A message that was requeued ahead of it in the meantime stays due.
	_, err = tx.Exec(ctx, `
		UPDATE failed_keys SET due_at = clock_timestamp() + $4 * interval '1 second' WHERE consumer = $1 AND key = $2
		AND $3 = (SELECT min(id) FROM failed_messages WHERE consumer = $1 AND waiting_key = $2 AND state = 'waiting')`,
		k.Consumer, k.Key, e.ID, wait.Seconds())
	if err != nil {
		return fmt.Errorf("postponing key %s: %w", k.Key, err)
	}

	return nil
}

// Postpone sets the due time of a key to now + wait.
func (s *Store) Postpone(ctx context.Context, k Key, wait time.Duration) error {
	return postpone(ctx, s.pool, k, wait)
}

func postpone(ctx context.Context, db postgres.Execer, k Key, wait time.Duration) error {
	_, err := db.Exec(ctx, `
		UPDATE failed_keys SET due_at = clock_timestamp() + $3 * interval '1 second' WHERE consumer = $1 AND key = $2`,
		k.Consumer, k.Key, wait.Seconds())
	if err != nil {
		return fmt.Errorf("postponing key %s: %w", k.Key, err)
	}

	return nil
}

// Renew extends the lease of a key to now + lease, unless the key is due: a message
// was requeued ahead, or the lease has expired.
func (s *Store) Renew(ctx context.Context, k Key, lease time.Duration) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE failed_keys SET due_at = clock_timestamp() + $3 * interval '1 second'
		WHERE consumer = $1 AND key = $2 AND due_at > clock_timestamp()`,
		k.Consumer, k.Key, lease.Seconds())
	if err != nil {
		return fmt.Errorf("renewing the lease of key %s: %w", k.Key, err)
	}

	return nil
}

// lockKeyOf locks the key that a message is waiting for. Transactions that are about
// to block messages by the key commit before it returns.
func lockKeyOf(ctx context.Context, tx pgx.Tx, id int64) (k Key, waits bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT k.consumer, k.key FROM failed_keys k JOIN failed_messages m ON m.consumer = k.consumer AND m.waiting_key = k.key
		WHERE m.id = $1 AND m.state = 'waiting' FOR UPDATE OF k`, id).Scan(&k.Consumer, &k.Key)
	if errors.Is(err, pgx.ErrNoRows) {
		return k, false, nil
	}

	if err != nil {
		return k, false, fmt.Errorf("locking the key of failed message %d: %w", id, err)
	}

	return k, true, nil
}

// free deletes a key that no message is waiting for.
func free(ctx context.Context, tx pgx.Tx, k Key) error {
	batch := &pgx.Batch{}
	batch.Queue(`SELECT FROM failed_keys WHERE consumer = $1 AND key = $2 FOR UPDATE`, k.Consumer, k.Key)
	batch.Queue(`
		DELETE FROM failed_keys k WHERE consumer = $1 AND key = $2
		AND NOT EXISTS (SELECT FROM failed_messages m WHERE m.consumer = k.consumer AND m.waiting_key = k.key AND m.state = 'waiting')`,
		k.Consumer, k.Key)

	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("freeing key %s: %w", k.Key, err)
	}

	return nil
}

// Finish ends the wait of e, which was applied. It deletes the message, or resolves
// it if it was ever stopped. The next message of the key becomes the first; without
// one the key is freed. A message that was edited since e was read continues to wait,
// because its new payload has not been applied.
func (s *Store) Finish(ctx context.Context, e Entry) error {
	return postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		k, waits, err := lockKeyOf(ctx, tx, e.ID)
		if err != nil || !waits {
			return err // settled by another replica, withdrawn or skipped
		}

		const applied = `id = $1 AND state = 'waiting' AND edited IS NOT DISTINCT FROM $2 AND applied_as IS NOT DISTINCT FROM $3`

		batch := &pgx.Batch{}
		batch.Queue(`DELETE FROM failed_messages WHERE `+applied+` AND deliveries = 0`, e.ID, e.Edited, e.AppliedAs)
		batch.Queue(`
			UPDATE failed_messages
			SET state = 'resolved', waiting_key = NULL, resolution = 'applied', resolved_at = now(), revision = revision + 1
			WHERE `+applied, e.ID, e.Edited, e.AppliedAs)

		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return fmt.Errorf("finishing failed message %d: %w", e.ID, err)
		}

		return free(ctx, tx, k)
	})
}

// Lease returns due keys, at most room[consumer] of each consumer, and advances their
// due time by lease. If the caller dies, they become due again.
func (s *Store) Lease(ctx context.Context, room map[string]int, lease time.Duration) ([]Key, error) {
	consumers := slices.Sorted(maps.Keys(room))
	limits := postgres.Column(consumers, func(consumer string) int64 { return int64(room[consumer]) })

	keys, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Key], `
		UPDATE failed_keys k SET due_at = clock_timestamp() + $1 * interval '1 second'
		FROM unnest($2::text[], $3::bigint[]) AS r (consumer, room)
		CROSS JOIN LATERAL (
			SELECT d.consumer, d.key FROM failed_keys d
			WHERE d.consumer = r.consumer AND d.due_at <= clock_timestamp()
			ORDER BY d.due_at LIMIT r.room FOR NO KEY UPDATE SKIP LOCKED) AS due
		WHERE k.consumer = due.consumer AND k.key = due.key
		RETURNING k.consumer, k.key`, lease.Seconds(), consumers, limits)
	if err != nil {
		return nil, fmt.Errorf("leasing waiting keys: %w", err)
	}

	return keys, nil
}

// Head is the first message of a key.
type Head struct {
	Entry

	// Behind is true if this message was requeued together with an earlier message of
	// the same key in another consumer that has not been tried since. Messages that
	// were requeued together are tried in order of arrival.
	Behind bool
}

// Head returns the first message of a key; ok is false if none is waiting. Messages
// of consumers that are not running block no others.
func (s *Store) Head(ctx context.Context, k Key, running []string) (h Head, ok bool, err error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Head], `
		SELECT `+columns+`, deliveries > 0 AND tried_at IS NULL AND EXISTS (
			SELECT FROM failed_messages o
			WHERE o.consumer = ANY($3) AND o.consumer <> h.consumer AND o.waiting_key = h.waiting_key AND o.state = 'waiting'
			  AND o.id < h.id AND o.deliveries > 0 AND o.tried_at IS NULL
			  AND NOT EXISTS (
				SELECT FROM failed_messages p
				WHERE p.consumer = o.consumer AND p.waiting_key = o.waiting_key AND p.state = 'waiting' AND p.id < o.id AND p.tried_at IS NOT NULL))
		FROM failed_messages h WHERE consumer = $1 AND waiting_key = $2 AND state = 'waiting' ORDER BY id LIMIT 1`, k.Consumer, k.Key, running)
	if err != nil {
		return h, false, fmt.Errorf("reading the first message of key %s: %w", k.Key, err)
	}

	if len(list) == 0 {
		return h, false, nil
	}

	return list[0], true, nil
}
