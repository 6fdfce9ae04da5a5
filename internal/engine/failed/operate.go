package failed

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// WaitingEntry is the first message of a waiting key.
type WaitingEntry struct {
	Entry

	DueAt time.Time `json:"due_at"`
	// Awaits lists the topics that may carry the message it awaits.
	Awaits []string `json:"awaits,omitempty"`
	// Blocked is the number of later messages with the key that it blocks.
	Blocked int `json:"blocked"`
}

// KeyFilter selects waiting keys. The zero value selects all.
type KeyFilter struct {
	// ID is the ID of a message waiting for the key.
	ID       int64
	Consumer string
	Key      string
}

const keyCondition = ` ($1 = 0 OR EXISTS (SELECT FROM failed_messages q WHERE q.id = $1 AND q.state = 'waiting' AND q.consumer = k.consumer AND q.failed_key = k.key))
	AND ($2 = '' OR k.consumer = $2) AND ($3 = '' OR k.key = $3) `

func (f KeyFilter) args(more ...any) []any {
	return append([]any{f.ID, f.Consumer, StoredKey(f.Key)}, more...)
}

// WaitingKeys returns the first messages of at most limit waiting keys, in order of
// due time.
func (s *Store) WaitingKeys(ctx context.Context, f KeyFilter, limit int) ([]WaitingEntry, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[WaitingEntry], `
		SELECT `+columns+`, due_at, CASE WHEN reason = 'early' THEN awaits ELSE '{}' END, blocked FROM (
			SELECT h.*, k.due_at, k.awaits,
			       (SELECT count(*) - 1 FROM failed_messages b WHERE b.consumer = k.consumer AND b.failed_key = k.key AND b.state = 'waiting') AS blocked
			FROM failed_keys k
			CROSS JOIN LATERAL (
				SELECT * FROM failed_messages m WHERE m.consumer = k.consumer AND m.failed_key = k.key AND m.state = 'waiting'
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
	return postgres.CountRows(ctx, s.pool, `SELECT FROM failed_keys k WHERE k.due_at IS NOT NULL AND`+keyCondition, f.args()...)
}

func notWaiting(id int64) error { return event.Missing("waiting message", fmt.Sprint(id)) }

// Queue returns, in order, the waiting messages that share a key with the given
// message.
func (s *Store) Queue(ctx context.Context, id int64) ([]Entry, error) {
	list, err := entries(ctx, s.pool, `
		SELECT `+columns+` FROM failed_messages
		WHERE state = 'waiting' AND (consumer, failed_key) = (SELECT consumer, failed_key FROM failed_messages WHERE id = $1 AND state = 'waiting') ORDER BY id`, id)
	if err == nil && len(list) == 0 {
		err = notWaiting(id)
	}

	return list, err
}

// Retried is the result of RetryNow.
type Retried struct {
	// Due is the number of keys made due. Messages is the number of messages waiting for
	// these keys.
	Due      int `json:"due"`
	Messages int `json:"messages"`
	// Consumers counts the keys by consumer.
	Consumers map[string]int `json:"-"`
}

// RetryNow makes the selected keys due immediately.
func (s *Store) RetryNow(ctx context.Context, f KeyFilter, by activity.Actor) (out Retried, err error) {
	out.Consumers = map[string]int{}

	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		// Serialize operators: two that lock many keys could deadlock.
		if err := postgres.LockInTx(ctx, tx, postgres.LockFailed, ""); err != nil {
			return err
		}

		keys, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[dueKey], `
			WITH chosen AS (
				SELECT consumer, key FROM failed_keys k WHERE due_at IS NOT NULL AND`+keyCondition+`ORDER BY consumer, key FOR NO KEY UPDATE
			), due AS (
				UPDATE failed_keys k SET due_at = clock_timestamp() FROM chosen c WHERE k.consumer = c.consumer AND k.key = c.key
				RETURNING k.consumer, k.key)
			SELECT due.consumer, due.key, m.first, m.messages, (SELECT coalesce(applied_as, message_id) FROM failed_messages WHERE id = m.first)
			FROM due CROSS JOIN LATERAL (
				SELECT min(id) AS first, count(*) AS messages FROM failed_messages m
				WHERE m.consumer = due.consumer AND m.failed_key = due.key AND m.state = 'waiting') AS m`, f.args()...)
		if err != nil {
			return fmt.Errorf("retrying waiting messages: %w", err)
		}

		for _, k := range keys {
			out.Due++
			out.Messages += k.Messages
			out.Consumers[k.Consumer]++
		}

		return activity.Record(ctx, tx, by, postgres.Column(keys, dueKey.retried)...)
	})

	return out, err
}

// dueKey is a key made due by an operator.
type dueKey struct {
	Key

	// First is the ID of its first message, nil if the key was freed in the meantime.
	First    *int64
	Messages int
	// MessageID is the ID under which the first message is applied.
	MessageID *uuid.UUID
}

func (k dueKey) retried() activity.Action {
	return activity.Action{Action: activity.Retried, Subject: k.Consumer + " " + k.Key.Key, EntryID: k.First, MessageID: k.MessageID}
}

const firstOfKey = `SELECT ` + columns + ` FROM failed_messages WHERE consumer = $1 AND failed_key = $2 AND state = 'waiting' ORDER BY id LIMIT 1`

// Skipped is the result of Skip.
type Skipped struct {
	ID int64 `json:"skipped"`
	// Next is the ID of the next message of the key, which is now due, or 0.
	Next     int64  `json:"next,omitempty"`
	Consumer string `json:"consumer"`
}

// Skip stops the first message of a key, given its ID; the next message of the key
// becomes due. It refuses any other message, because skipping it would break the
// order.
func (s *Store) Skip(ctx context.Context, id int64, by activity.Actor) (out Skipped, err error) {
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		k, waits, err := lockKeyOf(ctx, tx, id)
		if err != nil {
			return err
		}

		if !waits {
			return notWaiting(id)
		}

		list, err := entries(ctx, tx, firstOfKey, k.Consumer, k.Key)

		switch {
		case err != nil:
			return err
		case len(list) == 0 || list[0].ID > id: // settled before the key was locked
			return notWaiting(id)
		case list[0].ID < id:
			return event.Errorf(event.Conflict, "message %d is blocked by message %d of key %s, expected the first of its key", id, list[0].ID, terminal.Line(list[0].Key))
		}

		out, err = s.skip(ctx, tx, k, list[0], by)

		return err
	})

	return out, err
}

// skip stops e, the first message of k. The key k is locked.
func (s *Store) skip(ctx context.Context, tx pgx.Tx, k Key, e Entry, by activity.Actor) (out Skipped, err error) {
	e.Reason, e.Error = event.ReasonFailed, fmt.Sprintf("skipped by %s after %s: %s", by.Who, event.Plural(e.Attempts, "attempt", "attempts"), e.Error)

	if _, err := s.stop(ctx, tx, e); err != nil {
		return out, err
	}

	if err := free(ctx, tx, k); err != nil {
		return out, err
	}

	if _, err := tx.Exec(ctx, `
		UPDATE failed_keys SET due_at = clock_timestamp() WHERE consumer = $1 AND key = $2 AND due_at IS NOT NULL`, k.Consumer, k.Key); err != nil {
		return out, fmt.Errorf("making key %s due: %w", k.Key, err)
	}

	next, err := entries(ctx, tx, firstOfKey, k.Consumer, k.Key)
	if err != nil {
		return out, err
	}

	var actions []activity.Action

	out = Skipped{ID: e.ID, Consumer: e.Consumer}

	for _, n := range next {
		out.Next = n.ID
		messageID := n.ApplyID()
		actions = append(actions, activity.Action{Action: activity.Retried, Subject: subjectOf(n), EntryID: &n.ID, MessageID: &messageID})
	}

	actions = append(actions, activity.Action{Action: activity.Skipped, Subject: subjectOf(e), EntryID: &e.ID, MessageID: &e.MessageID})

	return out, activity.Record(ctx, tx, by, actions...)
}
