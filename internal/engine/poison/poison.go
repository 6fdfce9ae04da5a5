// Package poison keeps the messages that could not be applied, with their
// original bytes and headers, until an operator decides on them: mend, requeue
// or discard. It knows what consumers accept by a [Check] that it is given.
package poison

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config tunes the poison queue.
type Config struct {
	// Retention is how long an entry is kept after an operator decided on it; 0
	// is for ever. Open entries always stay.
	Retention time.Duration `koanf:"retention"`
	// Release is the version of the program, which entries carry. It is no
	// setting: the program says it.
	Release string `koanf:"-"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Release: "dev"} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	if c.Retention < 0 || (c.Retention > 0 && c.Retention < time.Hour) {
		return fmt.Errorf("poison.retention: is %s, expected 0 (for ever) or at least 1h", c.Retention)
	}

	return nil
}

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
	Deliveries int `json:"deliveries"`
	// Attempts is how often it was tried in all, as far as that is known.
	Attempts int       `json:"attempts"`
	FirstAt  time.Time `json:"first_at"`
	LastAt   time.Time `json:"last_at"`
	// FirstRelease and LastRelease are the versions of the program that
	// poisoned it first and last.
	FirstRelease string `json:"first_release"`
	LastRelease  string `json:"last_release"`
	// Group is the same for entries that failed for the same cause, which is
	// the error with its values taken out.
	Group string `json:"group"`
	Cause string `json:"cause"`
	// Revision grows with every change of the entry.
	Revision int `json:"revision"`
	// Edited is the payload as an operator mended it, nil if nobody has.
	Edited []byte `json:"edited,omitempty"`
	// Resolution is empty while the entry is open.
	Resolution Resolution `json:"resolution,omitempty"`
	ResolvedAt *time.Time `json:"resolved_at,omitempty"`
	// RequeuedAs is the id under which the message was requeued last.
	RequeuedAs *uuid.UUID `json:"requeued_as,omitempty"`
}

// Resolution is what an operator decided on an entry.
type Resolution string

// Resolutions. Open is the one of entries on which nobody has decided; it
// selects them in a Filter and is empty in an Entry.
const (
	Open      Resolution = "open"
	Requeued  Resolution = "requeued"
	Discarded Resolution = "discarded"
)

// Current is the payload with which the entry would be requeued.
func (e Entry) Current() []byte {
	if e.Edited != nil {
		return e.Edited
	}

	return e.Payload
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
	cfg  Config
	pool *pgxpool.Pool
}

// NewStore returns a store on pool.
func NewStore(cfg Config, pool *pgxpool.Pool) *Store { return &Store{cfg: cfg, pool: pool} }

// Release is the version of the program.
func (s *Store) Release() string { return s.cfg.Release }

// Add stores e; its ID, group, counts, times and releases are the store's own.
// The same message poisoned again counts in its entry: after a crash before its
// acknowledgement, or when it was requeued in vain, which opens the entry
// again. A discarded entry stays discarded.
func (s *Store) Add(ctx context.Context, e Entry) error {
	return s.Insert(ctx, s.pool, e)
}

// Insert is Add in the caller's transaction.
func (s *Store) Insert(ctx context.Context, db postgres.Execer, e Entry) error {
	headers, err := e.Headers.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encoding headers of poisoned message: %w", err)
	}

	cause := Cause(e)

	payload := e.Payload
	if payload == nil { // a tombstone of Kafka; nil would be NULL
		payload = []byte{}
	}

	// One statement, so one round trip and one transaction. An entry that was
	// edited is found by what was requeued in place of the original.
	_, err = db.Exec(ctx, `
		WITH again AS (
			SELECT id, resolution FROM poison
			WHERE consumer = $1 AND (message_id = $3 AND fingerprint = $4 OR requeued_as = $3 AND requeued_fingerprint = $4)
			ORDER BY requeued_as IS NULL, id LIMIT 1 FOR UPDATE
		), counted AS (
			UPDATE poison p
			SET deliveries = p.deliveries + 1, last_at = now(), reason = $9, error = $10, attempts = greatest(p.attempts, $11),
			    last_release = $12, group_id = $13, cause = $14, revision = p.revision + 1,
			    resolution = nullif(p.resolution, 'requeued'),
			    resolved_at = CASE WHEN p.resolution = 'discarded' THEN p.resolved_at END
			FROM again WHERE p.id = again.id
			RETURNING p.id, again.resolution
		), reopened AS (
			INSERT INTO poison_actions (entry_id, action, who, why)
			SELECT id, 'reopened', 'millrace', $10 FROM counted WHERE resolution = 'requeued'
		)
		INSERT INTO poison (consumer, topic, message_id, fingerprint, origin, key, headers, payload, reason, error,
		                    attempts, first_release, last_release, group_id, cause)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13, $14
		WHERE NOT EXISTS (SELECT FROM again)
		ON CONFLICT ON CONSTRAINT poison_once DO UPDATE
		SET deliveries = poison.deliveries + 1, last_at = now(), reason = excluded.reason, error = excluded.error,
		    group_id = excluded.group_id, cause = excluded.cause, revision = poison.revision + 1`,
		e.Consumer, e.Topic, e.MessageID, event.Fingerprint(e.Payload), e.Origin, event.Text(e.Key), string(headers),
		payload, string(e.Reason), event.Text(e.Error[:min(len(e.Error), maxError)]),
		e.Attempts, event.Text(s.cfg.Release), groupOf(e.Consumer, e.Reason, cause), cause)
	if err != nil {
		return fmt.Errorf("storing poisoned message %s: %w", e.MessageID, err)
	}

	return nil
}

const columns = `id, consumer, topic, message_id, origin, key, headers, payload, reason, error, deliveries, attempts,
	first_at, last_at, first_release, last_release, group_id, cause, revision, edited, coalesce(resolution, ''), resolved_at, requeued_as`

// List returns the newest entries, at most limit.
func (s *Store) List(ctx context.Context, f Filter, limit int) ([]Entry, error) {
	return s.list(ctx, columns, f, limit)
}

// Summaries is List without headers and payloads, which may be large: Edited is
// empty, but not nil, where there is one.
func (s *Store) Summaries(ctx context.Context, f Filter, limit int) ([]Entry, error) {
	return s.list(ctx, summary, f, limit)
}

// summary is columns without what may be large.
var summary = strings.NewReplacer(
	" headers,", " '{}'::jsonb,", " payload,", " ''::bytea,", " edited,", " CASE WHEN edited IS NOT NULL THEN ''::bytea END,",
).Replace(columns)

func (s *Store) list(ctx context.Context, columns string, f Filter, limit int) ([]Entry, error) {
	where, args := f.where()

	rows, err := s.pool.Query(ctx, `SELECT `+columns+` FROM poison WHERE `+where+fmt.Sprintf(` ORDER BY id DESC LIMIT %d`, limit), args...)
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

	return one(rows, id)
}

func one(rows pgx.Rows, id int64) (Entry, error) {
	entry, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Entry])
	if errors.Is(err, pgx.ErrNoRows) {
		return Entry{}, &NotFoundError{ID: id}
	}

	if err != nil {
		return Entry{}, fmt.Errorf("reading poison entry %d: %w", id, err)
	}

	return entry, nil
}

// expireBatch is how many entries are deleted in one transaction.
const expireBatch = 1000

// Expire deletes what is past its retention: entries on which an operator
// decided, with their actions. Open ones stay.
func (s *Store) Expire(ctx context.Context) (deleted int64, err error) {
	if s.cfg.Retention == 0 {
		return 0, nil
	}

	for {
		tag, err := s.pool.Exec(ctx, `
			DELETE FROM poison WHERE id IN (
				SELECT id FROM poison WHERE resolved_at < now() - $1 * interval '1 second'
				LIMIT $2 FOR UPDATE SKIP LOCKED)`, s.cfg.Retention.Seconds(), expireBatch)
		if err != nil {
			return deleted, fmt.Errorf("deleting old poison entries: %w", err)
		}

		deleted += tag.RowsAffected()

		if tag.RowsAffected() < expireBatch {
			return deleted, nil
		}
	}
}
