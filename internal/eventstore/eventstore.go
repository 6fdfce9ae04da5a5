// Package eventstore keeps what happened to each aggregate as a stream of
// typed events with versions 1..n.
package eventstore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/internal/postgres"
)

// Data is the body of an event in a stream.
type Data interface {
	// EventType names the type in the store. It never changes.
	EventType() string
}

// Record is an event to append to a stream.
type Record struct {
	Stream string
	// Version is the place in the stream: that of the last event plus one.
	// The caller holds the aggregate's row lock and so knows it.
	Version int
	Data    Data
	// MessageID is the message whose handling caused the event.
	MessageID uuid.UUID
}

// Append stores the records in tx. A version that exists already violates the
// primary key.
func Append(ctx context.Context, tx pgx.Tx, records []Record) error {
	if len(records) == 0 {
		return nil
	}

	var (
		streams  = make([]string, len(records))
		versions = make([]int32, len(records))
		types    = make([]string, len(records))
		bodies   = make([]string, len(records))
		messages = make([]uuid.UUID, len(records))
	)

	for i, r := range records {
		body, err := json.Marshal(r.Data)
		if err != nil {
			return fmt.Errorf("encoding event %s: %w", r.Data.EventType(), err)
		}

		streams[i], versions[i] = r.Stream, int32(r.Version) //nolint:gosec // a stream has few events
		types[i], bodies[i], messages[i] = r.Data.EventType(), string(body), r.MessageID
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO events (stream, version, type, data, message_id)
		SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::jsonb[], $5::uuid[])`,
		streams, versions, types, bodies, messages)
	if err != nil {
		return fmt.Errorf("appending events: %w", err)
	}

	return nil
}

// Event is an event as it was stored.
type Event struct {
	Version    int             `json:"version"`
	Type       string          `json:"type"`
	Data       json.RawMessage `json:"data"`
	MessageID  uuid.UUID       `json:"message_id"`
	RecordedAt time.Time       `json:"recorded_at"`
}

// Read returns the events of a stream in order; none if there is no such stream.
func Read(ctx context.Context, db postgres.Querier, stream string) ([]Event, error) {
	rows, err := db.Query(ctx, `
		SELECT version, type, data, message_id, recorded_at
		FROM events WHERE stream = $1 ORDER BY version`, stream)
	if err != nil {
		return nil, fmt.Errorf("reading stream %s: %w", stream, err)
	}

	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	if err != nil {
		return nil, fmt.Errorf("reading stream %s: %w", stream, err)
	}

	return events, nil
}
