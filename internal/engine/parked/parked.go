// Package parked keeps messages that failed and are worth another attempt
// later, and the messages that came for the same key after them: those wait
// behind it, in order, while other keys go on. It decides when a message is
// tried, not what becomes of it.
package parked

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/poison"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Message is a parked message.
type Message struct {
	Seq         int64         `json:"seq"`
	Consumer    string        `json:"consumer"`
	Topic       string        `json:"topic"`
	Key         string        `json:"key"`
	MessageID   uuid.UUID     `json:"message_id"`
	Fingerprint int64         `json:"fingerprint"`
	Origin      string        `json:"origin"`
	Headers     event.Headers `json:"headers"`
	Payload     []byte        `json:"payload"`
	// Attempts is how often it failed.
	Attempts int `json:"attempts"`
	// Error is why the last attempt failed, empty for a message that waits
	// behind another.
	Error    string     `json:"error,omitempty"`
	ParkedAt time.Time  `json:"parked_at"`
	TriedAt  *time.Time `json:"tried_at,omitempty"`
}

const columns = `seq, consumer, topic, key, message_id, fingerprint, origin, headers, payload, attempts, coalesce(error, ''), parked_at, tried_at`

// Key names what waits together.
type Key struct {
	Consumer string
	Key      string
}

// Store is the parked messages.
type Store struct {
	pool   *pgxpool.Pool
	poison *poison.Store
}

// NewStore returns the store on pool. What is given up goes to poisoned.
func NewStore(pool *pgxpool.Pool, poisoned *poison.Store) *Store {
	return &Store{pool: pool, poison: poisoned}
}

// QueueHeld adds a query to batch that calls found with each of the keys that
// waits. Their rows stay locked until the transaction ends, so that none of
// them can be done waiting before messages are put behind it.
func QueueHeld(batch *pgx.Batch, consumer string, keys []string, found func(key string)) {
	batch.Queue(`
		SELECT key FROM parked_keys WHERE consumer = $1 AND key = ANY($2)
		ORDER BY key FOR KEY SHARE`, consumer, keys).
		Query(func(rows pgx.Rows) error {
			var key string

			_, err := pgx.ForEachRow(rows, []any{&key}, func() error {
				found(key)

				return nil
			})

			return err
		})
}

// Held returns those of the keys that wait now.
func Held(ctx context.Context, db postgres.Querier, consumer string, keys []string) (map[string]bool, error) {
	rows, err := db.Query(ctx, `SELECT key FROM parked_keys WHERE consumer = $1 AND key = ANY($2)`, consumer, keys)
	if err != nil {
		return nil, fmt.Errorf("reading parked keys: %w", err)
	}

	held := make(map[string]bool)

	var key string

	_, err = pgx.ForEachRow(rows, []any{&key}, func() error {
		held[key] = true

		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading parked keys: %w", err)
	}

	return held, nil
}

// Follow puts messages behind those that wait for the same keys. Of a message
// that is there already nothing changes. The caller holds the keys; see
// QueueHeld.
func Follow(ctx context.Context, tx pgx.Tx, messages []Message) error {
	for _, m := range messages {
		if err := insert(ctx, tx, m); err != nil {
			return err
		}
	}

	return nil
}

func insert(ctx context.Context, tx pgx.Tx, m Message) error {
	// Headers.MarshalJSON cannot fail: it escapes what JSON cannot hold.
	headers, _ := m.Headers.MarshalJSON()

	_, err := tx.Exec(ctx, `
		INSERT INTO parked (consumer, topic, key, message_id, fingerprint, origin, headers, payload, attempts, error, tried_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, NULLIF($10, ''), CASE WHEN $10 <> '' THEN now() END)
		ON CONFLICT ON CONSTRAINT parked_once DO NOTHING`,
		m.Consumer, m.Topic, m.Key, m.MessageID, m.Fingerprint, m.Origin, string(headers), m.Payload, m.Attempts, event.Text(m.Error))
	if err != nil {
		return fmt.Errorf("parking message %s: %w", m.MessageID, err)
	}

	return nil
}

// FollowAlone puts m behind what waits for its key. It returns false when
// nothing waits any more: then m is free to go.
func (s *Store) FollowAlone(ctx context.Context, m Message) (waits bool, err error) {
	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		QueueHeld(batch, m.Consumer, []string{m.Key}, func(string) { waits = true })

		if err := tx.SendBatch(ctx, batch).Close(); err != nil || !waits {
			return err
		}

		return insert(ctx, tx, m)
	})

	return waits, err
}

// Park makes m, which failed m.Attempts times and last with m.Error, wait. A
// message with a sequence number waits already: it is tried again later.
func (s *Store) Park(ctx context.Context, m Message, wait time.Duration) error {
	return postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		if m.Seq != 0 {
			return again(ctx, tx, m, wait)
		}

		// A key that waits already is locked and stays as it is: without the lock
		// it could be freed before the message is behind it.
		_, err := tx.Exec(ctx, `
			INSERT INTO parked_keys AS k (consumer, key, due_at) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second')
			ON CONFLICT ON CONSTRAINT parked_keys_pkey DO UPDATE SET due_at = k.due_at`, m.Consumer, m.Key, wait.Seconds())
		if err != nil {
			return fmt.Errorf("parking key %s: %w", m.Key, err)
		}

		return insert(ctx, tx, m)
	})
}

func again(ctx context.Context, tx pgx.Tx, m Message, wait time.Duration) error {
	tag, err := tx.Exec(ctx, `UPDATE parked SET attempts = $2, error = $3, tried_at = now() WHERE seq = $1`,
		m.Seq, m.Attempts, event.Text(m.Error))
	if err != nil {
		return fmt.Errorf("parking message %s again: %w", m.MessageID, err)
	}

	if tag.RowsAffected() == 0 {
		return nil // it was skipped, withdrawn or ended by another replica: what is behind it need not wait
	}

	return postpone(ctx, tx, Key{Consumer: m.Consumer, Key: m.Key}, wait)
}

func postpone(ctx context.Context, db postgres.Execer, k Key, wait time.Duration) error {
	_, err := db.Exec(ctx, `
		UPDATE parked_keys SET due_at = clock_timestamp() + $3 * interval '1 second' WHERE consumer = $1 AND key = $2`,
		k.Consumer, k.Key, wait.Seconds())
	if err != nil {
		return fmt.Errorf("postponing key %s: %w", k.Key, err)
	}

	return nil
}

// Postpone lets a key wait longer.
func (s *Store) Postpone(ctx context.Context, k Key, wait time.Duration) error {
	return postpone(ctx, s.pool, k, wait)
}

// Finish ends the wait of the message with a sequence number: it was applied
// or poisoned. The next message of its key is the first then; without one the
// key is free.
func (s *Store) Finish(ctx context.Context, seq int64) error {
	return postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error { return finish(ctx, tx, seq) })
}

func finish(ctx context.Context, tx pgx.Tx, seq int64) error {
	var k Key

	// The lock comes first: whoever is about to put a message behind this one
	// commits before the next statement looks.
	err := tx.QueryRow(ctx, `
		SELECT k.consumer, k.key FROM parked_keys k JOIN parked p USING (consumer, key)
		WHERE p.seq = $1 FOR UPDATE OF k`, seq).Scan(&k.Consumer, &k.Key)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // another replica has ended it
	}

	if err != nil {
		return fmt.Errorf("ending the wait of message %d: %w", seq, err)
	}

	batch := &pgx.Batch{}
	batch.Queue(`DELETE FROM parked WHERE seq = $1`, seq)
	batch.Queue(`
		DELETE FROM parked_keys k WHERE consumer = $1 AND key = $2
		AND NOT EXISTS (SELECT FROM parked p WHERE p.consumer = k.consumer AND p.key = k.key)`, k.Consumer, k.Key)

	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("ending the wait of message %d: %w", seq, err)
	}

	return nil
}

// Lease returns keys that are due, of each consumer at most as many as it has
// room for, and moves their due time ahead by lease: if the caller vanishes,
// they are due again.
func (s *Store) Lease(ctx context.Context, room map[string]int, lease time.Duration) ([]Key, error) {
	var (
		consumers = slices.Sorted(maps.Keys(room))
		limits    = make([]int32, len(consumers))
	)

	for i, consumer := range consumers {
		limits[i] = int32(room[consumer]) //nolint:gosec // a handful
	}

	rows, err := s.pool.Query(ctx, `
		UPDATE parked_keys k SET due_at = clock_timestamp() + $1 * interval '1 second'
		FROM unnest($2::text[], $3::int[]) AS r (consumer, room)
		CROSS JOIN LATERAL (
			SELECT d.consumer, d.key FROM parked_keys d
			WHERE d.consumer = r.consumer AND d.due_at <= clock_timestamp()
			ORDER BY d.due_at LIMIT r.room FOR NO KEY UPDATE SKIP LOCKED) AS due
		WHERE k.consumer = due.consumer AND k.key = due.key
		RETURNING k.consumer, k.key`, lease.Seconds(), consumers, limits)
	if err != nil {
		return nil, fmt.Errorf("leasing parked keys: %w", err)
	}

	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Key])
	if err != nil {
		return nil, fmt.Errorf("leasing parked keys: %w", err)
	}

	return keys, nil
}

// Head returns the first message of a key; ok is false when none is left.
func (s *Store) Head(ctx context.Context, k Key) (m Message, ok bool, err error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+columns+` FROM parked WHERE consumer = $1 AND key = $2 ORDER BY seq LIMIT 1`, k.Consumer, k.Key)
	if err != nil {
		return m, false, fmt.Errorf("reading parked messages: %w", err)
	}

	m, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Message])
	if errors.Is(err, pgx.ErrNoRows) {
		return m, false, nil
	}

	if err != nil {
		return m, false, fmt.Errorf("reading parked messages: %w", err)
	}

	return m, true, nil
}
