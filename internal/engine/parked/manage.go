package parked

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/poison"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Waiting is a key that waits: its first message, and how many are behind it.
type Waiting struct {
	Message

	DueAt  time.Time `json:"due_at"`
	Behind int       `json:"behind"`
}

// Filter selects keys that wait. The zero value selects all.
type Filter struct {
	Seq      int64
	Consumer string
	Key      string
}

const condition = ` ($1 = 0 OR EXISTS (SELECT FROM parked q WHERE q.seq = $1 AND q.consumer = k.consumer AND q.key = k.key))
	AND ($2 = '' OR k.consumer = $2) AND ($3 = '' OR k.key = $3) `

func (f Filter) args(more ...any) []any { return append([]any{f.Seq, f.Consumer, f.Key}, more...) }

// List returns the keys that wait, those that are due next first, at most limit.
func (s *Store) List(ctx context.Context, f Filter, limit int) ([]Waiting, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT p.seq, p.consumer, p.topic, p.key, p.message_id, p.fingerprint, p.origin, p.headers, p.payload, p.attempts,
		       coalesce(p.error, ''), p.parked_at, p.tried_at, k.due_at,
		       (SELECT count(*) - 1 FROM parked b WHERE b.consumer = k.consumer AND b.key = k.key)
		FROM parked_keys k
		CROSS JOIN LATERAL (SELECT * FROM parked h WHERE h.consumer = k.consumer AND h.key = k.key ORDER BY seq LIMIT 1) AS p
		WHERE`+condition+`ORDER BY k.due_at, p.seq LIMIT $4`, f.args(limit)...)
	if err != nil {
		return nil, fmt.Errorf("listing parked messages: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Waiting])
	if err != nil {
		return nil, fmt.Errorf("listing parked messages: %w", err)
	}

	return list, nil
}

// NotFoundError says that no parked message has this sequence number.
type NotFoundError struct{ Seq int64 }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("there is no parked message %d: it was applied or poisoned, or never parked", e.Seq)
}

// Queue returns the messages that wait for the same key as the one with a
// sequence number, in order, or a NotFoundError.
func (s *Store) Queue(ctx context.Context, seq int64) ([]Message, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+columns+` FROM parked
		WHERE (consumer, key) = (SELECT consumer, key FROM parked WHERE seq = $1) ORDER BY seq`, seq)
	if err != nil {
		return nil, fmt.Errorf("reading parked messages: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Message])
	if err != nil {
		return nil, fmt.Errorf("reading parked messages: %w", err)
	}

	if len(list) == 0 {
		return nil, &NotFoundError{Seq: seq}
	}

	return list, nil
}

// Retry makes the selected keys due now and returns how many there are.
func (s *Store) Retry(ctx context.Context, f Filter, by poison.Actor) (n int64, err error) {
	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			WITH due AS (UPDATE parked_keys k SET due_at = clock_timestamp() WHERE`+condition+`RETURNING consumer, key)
			INSERT INTO operations (action, subject, who, why) SELECT 'parked_retried', consumer || ' ' || key, $4, $5 FROM due`,
			f.args(by.Who, event.Text(by.Why))...)
		n = tag.RowsAffected()

		return err
	})
	if err != nil {
		return 0, fmt.Errorf("retrying parked messages: %w", err)
	}

	return n, nil
}

// Withdraw deletes the messages of these topics that wait with a key, which is
// free then, and returns how many there were.
func Withdraw(ctx context.Context, tx pgx.Tx, key string, topics []string) (int64, error) {
	// The locks come first; see finish.
	_, err := tx.Exec(ctx, `
		SELECT FROM parked_keys k WHERE key = $1
		AND EXISTS (SELECT FROM parked p WHERE p.consumer = k.consumer AND p.key = k.key AND p.topic = ANY($2))
		ORDER BY consumer FOR UPDATE`, key, topics)
	if err != nil {
		return 0, fmt.Errorf("withdrawing parked messages of key %s: %w", key, err)
	}

	tag, err := tx.Exec(ctx, `DELETE FROM parked WHERE key = $1 AND topic = ANY($2)`, key, topics)
	if err != nil {
		return 0, fmt.Errorf("withdrawing parked messages of key %s: %w", key, err)
	}

	// A consumer has one topic: with these, all of its messages are gone.
	_, err = tx.Exec(ctx, `
		DELETE FROM parked_keys k WHERE key = $1
		AND NOT EXISTS (SELECT FROM parked p WHERE p.consumer = k.consumer AND p.key = k.key)`, key)
	if err != nil {
		return 0, fmt.Errorf("withdrawing parked messages of key %s: %w", key, err)
	}

	return tag.RowsAffected(), nil
}

// Skip gives up the first message of a key, by its sequence number: it goes to
// the poison queue, where it can be mended and requeued, and the next one of
// its key is due. A message that is not the first is refused: the order would
// be lost.
func (s *Store) Skip(ctx context.Context, seq int64, by poison.Actor) error {
	err := postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			SELECT `+columns+`, EXISTS (SELECT FROM parked b WHERE b.consumer = p.consumer AND b.key = p.key AND b.seq < p.seq)
			FROM parked p WHERE seq = $1`, seq)
		if err != nil {
			return err
		}

		m, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[placed])
		if errors.Is(err, pgx.ErrNoRows) {
			return &NotFoundError{Seq: seq}
		}

		if err != nil {
			return err
		}

		if m.Behind {
			return fmt.Errorf("message %d waits behind another of key %s, expected the first of its key", seq, m.Key)
		}

		if err := s.poison.Insert(ctx, tx, entryOf(m.Message, by)); err != nil {
			return err
		}

		if err := finish(ctx, tx, seq); err != nil {
			return err
		}

		if err := postpone(ctx, tx, Key{Consumer: m.Consumer, Key: m.Key}, 0); err != nil {
			return err
		}

		_, err = tx.Exec(ctx, `INSERT INTO operations (action, subject, who, why) VALUES ('parked_skipped', $1, $2, $3)`,
			m.Consumer+" "+m.Key+" "+m.MessageID.String(), by.Who, event.Text(by.Why))

		return err
	})
	if err != nil {
		return fmt.Errorf("skipping parked message %d: %w", seq, err)
	}

	return nil
}

// placed is a message that knows whether others of its key are before it.
type placed struct {
	Message

	Behind bool
}

func entryOf(m Message, by poison.Actor) poison.Entry {
	return poison.Entry{
		Consumer: m.Consumer, Topic: m.Topic, MessageID: m.MessageID, Origin: m.Origin, Key: m.Key, Headers: m.Headers,
		Payload: m.Payload, Attempts: m.Attempts, Reason: event.ReasonFailed,
		Error: fmt.Sprintf("skipped by %s after %d attempts: %s", by.Who, m.Attempts, m.Error),
	}
}
