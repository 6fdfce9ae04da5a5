// Package poison keeps the messages that could not be applied, with their
// original bytes and headers, until an operator decides on them.
package poison

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/postgres"
)

// Entry is a poisoned message.
type Entry struct {
	ID        int64         `json:"id"`
	Consumer  string        `json:"consumer"`
	Topic     string        `json:"topic"`
	MessageID uuid.UUID     `json:"message_id"`
	Origin    string        `json:"origin"`
	Key       string        `json:"key"`
	Headers   event.Headers `json:"headers"`
	Payload   []byte        `json:"payload"`
	Reason    event.Reason  `json:"reason"`
	Error     string        `json:"error"`
	// Deliveries is how often this message was poisoned.
	Deliveries int       `json:"deliveries"`
	FirstAt    time.Time `json:"first_at"`
	LastAt     time.Time `json:"last_at"`
}

// Actor is who acts, and why.
type Actor struct {
	Who string
	Why string
}

// NotFoundError says that there is no such entry.
type NotFoundError struct{ ID int64 }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("no poison entry %d: `millrace poison list` shows what there is", e.ID)
}

// maxError bounds the stored text of an error, in bytes.
const maxError = 4096

// Store reads and writes the poison queue.
type Store struct {
	pool *pgxpool.Pool
}

// NewStore returns a store on pool.
func NewStore(pool *pgxpool.Pool) *Store { return &Store{pool: pool} }

// Add stores e; ID, Deliveries and the times are the store's own. The same
// message poisoned again, as after a crash before its acknowledgement, counts
// in its entry.
func (s *Store) Add(ctx context.Context, e Entry) error {
	return Insert(ctx, s.pool, e)
}

// Insert is Add in the caller's transaction.
func Insert(ctx context.Context, db postgres.Execer, e Entry) error {
	headers, err := e.Headers.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encoding headers of poisoned message: %w", err)
	}

	_, err = db.Exec(ctx, `
		INSERT INTO poison (consumer, topic, message_id, fingerprint, origin, key, headers, payload, reason, error)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT ON CONSTRAINT poison_once DO UPDATE
		SET deliveries = poison.deliveries + 1, last_at = now(), reason = excluded.reason, error = excluded.error`,
		e.Consumer, e.Topic, e.MessageID, event.Fingerprint(e.Payload), e.Origin, event.Text(e.Key), string(headers),
		e.Payload, e.Reason, event.Text(e.Error[:min(len(e.Error), maxError)]))
	if err != nil {
		return fmt.Errorf("storing poisoned message %s: %w", e.MessageID, err)
	}

	return nil
}

const columns = `id, consumer, topic, message_id, origin, key, headers, payload, reason, error, deliveries, first_at, last_at`

// List returns the newest entries, at most limit. An empty topic means all.
func (s *Store) List(ctx context.Context, topic string, limit int) ([]Entry, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+columns+` FROM poison
		WHERE $1 = '' OR topic = $1
		ORDER BY id DESC LIMIT $2`, topic, limit)
	if err != nil {
		return nil, fmt.Errorf("reading poison queue: %w", err)
	}

	entries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Entry])
	if err != nil {
		return nil, fmt.Errorf("reading poison queue: %w", err)
	}

	return entries, nil
}

// Get returns one entry, or a NotFoundError.
func (s *Store) Get(ctx context.Context, id int64) (Entry, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+columns+` FROM poison WHERE id = $1`, id)
	if err != nil {
		return Entry{}, fmt.Errorf("reading poison entry %d: %w", id, err)
	}

	entry, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Entry])
	if errors.Is(err, pgx.ErrNoRows) {
		return Entry{}, &NotFoundError{ID: id}
	}

	if err != nil {
		return Entry{}, fmt.Errorf("reading poison entry %d: %w", id, err)
	}

	return entry, nil
}
