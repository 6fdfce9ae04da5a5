// Package eventstore stores the history of each aggregate as a stream of typed
// events with versions 1..n. Projections follow the events of all streams.
package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Data is the body of an event in a stream.
type Data interface {
	// EventType is the stored name of the type. It must never change.
	EventType() string
}

// Record is an event to append to a stream.
type Record struct {
	Stream string
	// Version is the version of the stream's last event plus one.
	Version int
	Data    Data
	// MessageID is the message whose handling caused the event.
	MessageID uuid.UUID
	// Held is true if the caller has read the version of the stream under a lock that
	// it still holds. Append then does not look for the event before this one.
	Held bool
}

// ConflictError reports that a stream is not at the expected version because another
// writer was faster. Reload the stream and decide again.
type ConflictError struct {
	Stream   string
	Expected int
	// Actual is the version of the stream, or the version that another writer took.
	Actual int
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("stream %s is at version %d, expected %d", e.Stream, e.Actual, e.Expected)
}

// Append stores the records in tx. It returns a ConflictError if a stream is not at
// the version before its first record; tx must then be rolled back. Records of a
// stream must be in order. Sort the streams to avoid deadlocks with other writers.
func Append(ctx context.Context, tx pgx.Tx, records []Record) error {
	if len(records) == 0 {
		return nil
	}

	args, err := arguments(records)
	if err != nil {
		return err
	}

	tag, err := tx.Exec(ctx, insertEvents, args...)

	switch {
	case err != nil:
		return notAppended(err, records)
	case int(tag.RowsAffected()) < len(records):
		return conflict(ctx, tx, records)
	default:
		return nil
	}
}

// Queue is Append for records that are all Held or the first of their streams: it queues
// the statement instead of sending it.
func Queue(batch *pgx.Batch, records []Record) error {
	if len(records) == 0 {
		return nil
	}

	args, err := arguments(records)
	if err != nil {
		return err
	}

	batch.Queue(insertEvents, args...).Fn = func(results pgx.BatchResults) error {
		tag, err := results.Exec()

		switch {
		case err != nil:
			return notAppended(err, records)
		case int(tag.RowsAffected()) < len(records):
			return fmt.Errorf("appending events: only %d of %d follow on what is stored", tag.RowsAffected(), len(records))
		default:
			return nil
		}
	}

	return nil
}

// insertEvents inserts records. The first condition assigns the transaction's ID before its
// first position, which Horizon relies on. The second prevents gaps in a stream. The
// primary key rejects existing versions; ON CONFLICT would cost a tenth more per row, and
// conflicts are rare. With OFFSET 0, the second condition looks up each version by the
// primary key; without it, Postgres may first read the whole table into a hash.
const insertEvents = `
		INSERT INTO events (stream, version, type, data, message_id, schema)
		SELECT stream, version, type, data, message_id, schema
		FROM unnest($1::text[], $2::int[], $3::text[], $4::jsonb[], $5::uuid[], $6::smallint[], $7::boolean[])
		     AS r (stream, version, type, data, message_id, schema, follows)
		WHERE pg_current_xact_id() IS NOT NULL
		  AND (follows OR EXISTS (SELECT FROM events e WHERE e.stream = r.stream AND e.version = r.version - 1 OFFSET 0))`

// arguments returns the arguments of insertEvents.
func arguments(records []Record) ([]any, error) {
	var (
		streams  = make([]string, len(records))
		versions = make([]int32, len(records))
		types    = make([]string, len(records))
		bodies   = make([]string, len(records))
		messages = make([]uuid.UUID, len(records))
		schemas  = make([]int16, len(records))
		follows  = make([]bool, len(records))
	)

	for i, r := range records {
		body, err := json.Marshal(r.Data)
		if err != nil {
			return nil, fmt.Errorf("encoding event %s: %w", r.Data.EventType(), err)
		}

		streams[i], versions[i] = r.Stream, int32(r.Version) //nolint:gosec // streams are short
		types[i], bodies[i], messages[i] = r.Data.EventType(), string(body), r.MessageID
		schemas[i] = schemaOf(r.Data)
		follows[i] = r.Held || r.Version == 1 || i > 0 && records[i-1].Stream == r.Stream && records[i-1].Version == r.Version-1
	}

	return []any{streams, versions, types, bodies, messages, schemas, follows}, nil
}

// notAppended returns the error of insertEvents for a caller.
func notAppended(err error, records []Record) error {
	if postgres.IsDuplicate(err) {
		return taken(err, records)
	}

	return fmt.Errorf("appending events: %w", err)
}

// taken finds the record whose version already exists, from the insert's error.
func taken(err error, records []Record) error {
	if server, ok := errors.AsType[*pgconn.PgError](err); ok {
		for _, r := range records {
			if strings.Contains(server.Detail, fmt.Sprintf("(%s, %d)", r.Stream, r.Version)) {
				return &ConflictError{Stream: r.Stream, Expected: r.Version - 1, Actual: r.Version}
			}
		}
	}

	return fmt.Errorf("appending events: %w", err)
}

// conflict finds the stream that is not at the version before its first record.
func conflict(ctx context.Context, tx pgx.Tx, records []Record) error {
	for i, first := range records {
		if i > 0 && records[i-1].Stream == first.Stream {
			continue
		}

		var actual int

		// Ignore rows written by this transaction.
		err := tx.QueryRow(ctx, `
			SELECT coalesce(max(version), 0) FROM events
			WHERE stream = $1 AND xmin <> pg_current_xact_id()::xid`, first.Stream).Scan(&actual)
		if err != nil {
			return fmt.Errorf("reading version of stream %s: %w", first.Stream, err)
		}

		if actual != first.Version-1 {
			return &ConflictError{Stream: first.Stream, Expected: first.Version - 1, Actual: actual}
		}
	}

	return fmt.Errorf("appending events: the versions of a stream among %d records are not consecutive", len(records))
}

// Event is a stored event.
type Event struct {
	Stream     string          `json:"stream"`
	Version    int             `json:"version"`
	Position   int64           `json:"position"`
	Type       string          `json:"type"`
	Schema     int             `json:"schema"`
	Data       json.RawMessage `json:"data"`
	MessageID  uuid.UUID       `json:"message_id"`
	RecordedAt time.Time       `json:"recorded_at"`
}

const columns = `e.stream, e.version, e.position, e.type, e.schema, e.data, e.message_id, e.recorded_at`

// Read returns the events of a stream in order. It returns none if the stream does
// not exist.
func Read(ctx context.Context, db postgres.Querier, stream string) ([]Event, error) {
	events, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Event],
		`SELECT `+columns+` FROM events e WHERE stream = $1 ORDER BY version`, stream)
	if err != nil {
		return nil, fmt.Errorf("reading stream %s: %w", stream, err)
	}

	return events, nil
}

// Messages returns the messages that caused the events of streams, newest first and at
// most limit.
func Messages(ctx context.Context, db postgres.Querier, streams []string, limit int) ([]uuid.UUID, error) {
	ids, err := postgres.Collect(ctx, db, pgx.RowTo[uuid.UUID], `
		SELECT message_id FROM events WHERE stream = ANY($1) GROUP BY message_id ORDER BY max(position) DESC LIMIT $2`, streams, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the messages of streams: %w", err)
	}

	return ids, nil
}
