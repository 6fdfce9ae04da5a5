package failed

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// WaitingEntry is the first message of a waiting key.
type WaitingEntry struct {
	Entry

	DueAt time.Time `json:"due_at"`
	// Blocked is the number of later messages of the key that it blocks.
	Blocked int `json:"blocked"`
}

// KeyFilter selects waiting keys. The zero value selects all.
type KeyFilter struct {
	// ID is the ID of a message waiting for the key.
	ID       int64
	Consumer string
	Key      string
}

const keyCondition = ` ($1 = 0 OR EXISTS (SELECT FROM failed_messages q WHERE q.id = $1 AND q.consumer = k.consumer AND q.waiting_key = k.key))
	AND ($2 = '' OR k.consumer = $2) AND ($3 = '' OR k.key = $3) `

func (f KeyFilter) args(more ...any) []any {
	return append([]any{f.ID, f.Consumer, WaitingKey(f.Key)}, more...)
}

// WaitingKeys returns the first messages of at most limit waiting keys, in order of
// due time.
func (s *Store) WaitingKeys(ctx context.Context, f KeyFilter, limit int) ([]WaitingEntry, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[WaitingEntry], `
		SELECT `+columns+`, due_at, blocked FROM (
			SELECT h.*, k.due_at,
			       (SELECT count(*) - 1 FROM failed_messages b WHERE b.consumer = k.consumer AND b.waiting_key = k.key AND b.state = 'waiting') AS blocked
			FROM failed_keys k
			CROSS JOIN LATERAL (
				SELECT * FROM failed_messages m WHERE m.consumer = k.consumer AND m.waiting_key = k.key AND m.state = 'waiting'
				ORDER BY id LIMIT 1) AS h
			WHERE`+keyCondition+`) AS w
		ORDER BY due_at, id LIMIT $4`, f.args(limit)...)
	if err != nil {
		return nil, fmt.Errorf("listing waiting keys: %w", err)
	}

	return list, nil
}

// CountKeys counts the keys that WaitingKeys lists; see postgres.CountRows.
func (s *Store) CountKeys(ctx context.Context, f KeyFilter) (int, error) {
	return postgres.CountRows(ctx, s.pool, `SELECT FROM failed_keys k WHERE`+keyCondition, f.args()...)
}

func notWaiting(id int64) error { return event.Missing("waiting message", fmt.Sprint(id)) }

// Queue returns, in order, the waiting messages that share a key with the given
// message.
func (s *Store) Queue(ctx context.Context, id int64) ([]Entry, error) {
	list, err := entries(ctx, s.pool, `
		SELECT `+columns+` FROM failed_messages
		WHERE state = 'waiting' AND (consumer, waiting_key) = (SELECT consumer, waiting_key FROM failed_messages WHERE id = $1) ORDER BY id`, id)
	if err == nil && len(list) == 0 {
		err = notWaiting(id)
	}

	return list, err
}

// RetryNow makes the selected keys due now and returns their number.
func (s *Store) RetryNow(ctx context.Context, f KeyFilter, by activity.Actor) (n int64, err error) {
	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		// Serialize operators: two that lock many keys could deadlock.
		if err := postgres.LockInTx(ctx, tx, postgres.LockFailed, ""); err != nil {
			return err
		}

		keys, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[Key],
			`UPDATE failed_keys k SET due_at = clock_timestamp() WHERE`+keyCondition+`RETURNING consumer, key`, f.args()...)
		if err != nil {
			return fmt.Errorf("retrying waiting messages: %w", err)
		}

		n = int64(len(keys))

		return activity.Record(ctx, tx, by, postgres.Column(keys, func(k Key) activity.Action {
			return activity.Action{Action: activity.Retried, Subject: k.Consumer + " " + k.Key}
		})...)
	})

	return n, err
}

// Skip stops the first message of a key, given its ID; the next message of the key
// becomes due. It refuses any other message, because skipping it would break the
// order.
func (s *Store) Skip(ctx context.Context, id int64, by activity.Actor) error {
	return postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		k, waits, err := lockKeyOf(ctx, tx, id)
		if err != nil {
			return err
		}

		if !waits {
			return notWaiting(id)
		}

		list, err := entries(ctx, tx, `
			SELECT `+columns+` FROM failed_messages WHERE consumer = $1 AND waiting_key = $2 AND state = 'waiting' ORDER BY id LIMIT 1`,
			k.Consumer, k.Key)

		switch {
		case err != nil:
			return err
		case len(list) == 0 || list[0].ID > id: // settled before the key was locked
			return notWaiting(id)
		case list[0].ID < id:
			return event.Errorf(event.Conflict, "message %d is blocked by message %d of key %s, expected the first of its key", id, list[0].ID, list[0].Key)
		}

		e := list[0]
		e.Reason, e.Error = event.ReasonFailed, fmt.Sprintf("skipped by %s after %d attempts: %s", by.Who, e.Attempts, e.Error)

		if _, _, err := s.stop(ctx, tx, e); err != nil {
			return err
		}

		if err := free(ctx, tx, k); err != nil {
			return err
		}

		if err := postpone(ctx, tx, k, 0); err != nil {
			return err
		}

		return activity.Record(ctx, tx, by, activity.Action{Action: activity.Skipped, Subject: subjectOf(e), EntryID: &id, MessageID: &e.MessageID})
	})
}
