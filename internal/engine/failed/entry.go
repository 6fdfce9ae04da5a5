// Package failed stores the messages that did not go through, with their original
// bytes and headers. A waiting message has a next attempt due, or is blocked by an
// earlier message with its key. A stopped message needs an operator to edit, requeue or
// discard it. A resolved message was stopped and then applied after a requeue, or
// discarded.
package failed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config configures the store of failed messages.
type Config struct {
	// Retention is how long a resolved message is kept. Defaults to 0, which keeps it
	// indefinitely. Waiting and stopped messages are always kept.
	Retention time.Duration `koanf:"retention"`
	// Release is the version of the program, stored with failed messages. The program
	// sets it; it is not a configuration key.
	Release string `koanf:"-"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Release: "dev"} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	return check.Value(c.Retention == 0 || c.Retention >= time.Hour, "failed.retention", c.Retention, "at least 1h, or 0 for no limit")
}

// State is the state of a failed message.
type State string

// States.
const (
	Waiting  State = "waiting"
	Stopped  State = "stopped"
	Resolved State = "resolved"
)

// Resolution is how a stopped message was resolved.
type Resolution string

// Resolutions.
const (
	Applied   Resolution = "applied"
	Discarded Resolution = "discarded"
)

// Entry is a failed message.
type Entry struct {
	// ID gives the order of arrival: a key's lowest waiting ID is tried first.
	ID        int64         `json:"id"`
	State     State         `json:"state"`
	Consumer  string        `json:"consumer"`
	Topic     string        `json:"topic"`
	MessageID uuid.UUID     `json:"message_id"`
	Origin    string        `json:"origin"`
	Key       string        `json:"key"`
	Headers   event.Headers `json:"headers"`
	Payload   event.Content `json:"payload"`
	// Reason and Error describe the last failure. They are empty for a message that
	// is only blocked.
	Reason event.Reason `json:"reason,omitempty"`
	Error  string       `json:"error,omitempty"`
	// Deliveries is the number of times that the message has been stopped.
	Deliveries int `json:"deliveries"`
	// Attempts counts all failed attempts.
	Attempts int       `json:"attempts"`
	FirstAt  time.Time `json:"first_at"`
	LastAt   time.Time `json:"last_at"`
	// TriedAt is the time of the last failed attempt. It is nil if the message has
	// not been tried since it was blocked or requeued.
	TriedAt *time.Time `json:"tried_at,omitempty"`
	// FirstRelease and LastRelease are the program versions of the first and last
	// failure.
	FirstRelease string `json:"first_release"`
	LastRelease  string `json:"last_release"`
	// Group identifies messages with the same cause of failure, which is the error
	// without its variable values.
	Group string `json:"group,omitempty"`
	Cause string `json:"cause,omitempty"`
	// Revision increases with each change.
	Revision int `json:"revision"`
	// Edited is the payload set by an operator, or nil.
	Edited event.Content `json:"edited,omitempty"`
	// Resolution is set once the message is resolved.
	Resolution Resolution `json:"resolution,omitempty"`
	ResolvedAt *time.Time `json:"resolved_at,omitempty"`
	// AppliedAs is the ID under which the message is applied, if another payload was
	// applied under its own ID.
	AppliedAs *uuid.UUID `json:"applied_as,omitempty"`
	// FailedKey is the key that the message waits for, or that it had when it was
	// stopped, as StoredKey returns it. It is empty if there is none.
	FailedKey string `json:"-"`
}

const columns = `id, state, consumer, topic, message_id, origin, key, headers, payload, reason, error, deliveries, attempts,
	first_at, last_at, tried_at, first_release, last_release, group_id, cause, revision, edited, coalesce(resolution, ''), resolved_at, applied_as,
	coalesce(failed_key, '')`

// Current returns the payload to apply: the edited one, if any.
func (e Entry) Current() []byte {
	if e.Edited != nil {
		return e.Edited
	}

	return e.Payload
}

// ApplyID returns the ID under which the message is applied.
func (e Entry) ApplyID() uuid.UUID {
	if e.AppliedAs != nil {
		return *e.AppliedAs
	}

	return e.MessageID
}

// Key identifies messages for a consumer that must be applied in order.
type Key struct {
	Consumer string
	Key      string
}

// maxKey is the maximum length of a key in failed_keys, in bytes: an index entry must
// fit in a page.
const maxKey = 1000

// StoredKey returns a key as failed_keys stores it.
func StoredKey(key string) string {
	key = event.Text(key)
	if len(key) <= maxKey {
		return key
	}

	sum := sha256.Sum256([]byte(key))

	return "sha256:" + hex.EncodeToString(sum[:])
}

// maxError is the maximum length of a stored error, in bytes.
const maxError = 4096

// Store provides access to the failed messages.
type Store struct {
	cfg  Config
	pool *pgxpool.Pool
}

// NewStore returns a store on pool.
func NewStore(cfg Config, pool *pgxpool.Pool) *Store { return &Store{cfg: cfg, pool: pool} }

// Release returns the version of the program.
func (s *Store) Release() string { return s.cfg.Release }

// List returns at most limit entries, newest first.
func (s *Store) List(ctx context.Context, f Filter, limit int) ([]Entry, error) {
	return s.list(ctx, columns, f, `ORDER BY id DESC`, limit)
}

// Summaries is List without headers and payloads, which may be large. Edited is empty
// but not nil for edited entries.
func (s *Store) Summaries(ctx context.Context, f Filter, limit int) ([]Entry, error) {
	return s.list(ctx, summary, f, `ORDER BY id DESC`, limit)
}

// summary is columns without the potentially large ones.
var summary = strings.NewReplacer(
	" headers,", " '{}'::jsonb,", " payload,", " ''::bytea,", " edited,", " CASE WHEN edited IS NOT NULL THEN ''::bytea END,",
).Replace(columns)

// CountEntries counts the entries that List lists; see postgres.CountRows.
func (s *Store) CountEntries(ctx context.Context, f Filter) (int, error) {
	where, args := f.where()

	return postgres.CountRows(ctx, s.pool, `SELECT FROM failed_messages WHERE `+where, args...)
}

func (s *Store) list(ctx context.Context, columns string, f Filter, order string, limit int) ([]Entry, error) {
	where, args := f.where()

	return entries(ctx, s.pool, fmt.Sprintf(`SELECT %s FROM failed_messages WHERE %s %s LIMIT %d`, columns, where, order, limit), args...)
}

func entries(ctx context.Context, db postgres.Querier, sql string, args ...any) ([]Entry, error) {
	list, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Entry], sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading failed messages: %w", err)
	}

	return list, nil
}

// Get returns the entry with the given ID.
func (s *Store) Get(ctx context.Context, id int64) (Entry, error) {
	return get(ctx, s.pool, id, ``)
}

func get(ctx context.Context, db postgres.Querier, id int64, lock string) (Entry, error) {
	list, err := entries(ctx, db, `SELECT `+columns+` FROM failed_messages WHERE id = $1`+lock, id)
	if err == nil && len(list) == 0 {
		err = event.Missing("failed message", fmt.Sprint(id))
	}

	if err != nil {
		return Entry{}, err
	}

	return list[0], nil
}

// Count returns the number of waiting keys and stopped messages, each counted up to
// 10,000. A key whose first message waits for another system's decision is not counted,
// because nothing has failed. If more than 10,000 keys wait, Count examines only 10,000
// of them.
func (s *Store) Count(ctx context.Context) (waitingKeys, stopped int64, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM (SELECT consumer, key FROM failed_keys WHERE due_at IS NOT NULL LIMIT $1) AS k WHERE (
			SELECT reason FROM failed_messages m WHERE m.consumer = k.consumer AND m.failed_key = k.key AND m.state = 'waiting' ORDER BY id LIMIT 1) IS DISTINCT FROM $2),
		       (SELECT count(*) FROM (SELECT FROM failed_messages WHERE state = 'stopped' LIMIT $1) AS m)`, postgres.MaxCount, string(event.ReasonPending)).Scan(&waitingKeys, &stopped)
	if err != nil {
		return 0, 0, fmt.Errorf("counting failed messages: %w", err)
	}

	return waitingKeys, stopped, nil
}

// expireBatch is the number of entries deleted per transaction.
const expireBatch = 1000

// Expire deletes resolved messages past their retention, with the actions on them.
func (s *Store) Expire(ctx context.Context) (deleted int64, err error) {
	if s.cfg.Retention == 0 {
		return 0, nil
	}

	for {
		var n int64

		err := s.pool.QueryRow(ctx, `
			WITH expired AS (
				DELETE FROM failed_messages WHERE id IN (
					SELECT id FROM failed_messages WHERE resolved_at < now() - $1 * interval '1 second'
					LIMIT $2 FOR UPDATE SKIP LOCKED)
				RETURNING id
			), actions AS (
				DELETE FROM operator_actions WHERE entry_id IN (SELECT id FROM expired)
			)
			SELECT count(*) FROM expired`, s.cfg.Retention.Seconds(), expireBatch).Scan(&n)
		if err != nil {
			return deleted, fmt.Errorf("deleting resolved messages: %w", err)
		}

		deleted += n

		if n < expireBatch {
			return deleted, nil
		}
	}
}
