package eventstore

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Snapshot is the state of a stream at a version. It avoids reading the stream from
// the start and can be deleted at any time.
type Snapshot struct {
	Stream  string
	Version int
	// Schema is the schema version of Data. Load ignores snapshots of other versions.
	Schema int
	Data   json.RawMessage
}

// Stream is a stream's snapshot, if it has one, and the events after it.
type Stream struct {
	Snapshot *Snapshot
	Events   []Event
}

// Load returns the streams that exist. It ignores snapshots of other schema versions.
func Load(ctx context.Context, db postgres.Querier, streams []string, schema int) (map[string]Stream, error) {
	loaded := make(map[string]Stream, len(streams))

	snapshots, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Snapshot], `
		SELECT stream, version, schema, data FROM snapshots WHERE stream = ANY($1) AND schema = $2`, streams, schema)
	if err != nil {
		return nil, fmt.Errorf("loading snapshots: %w", err)
	}

	after := make([]int32, len(streams))

	for _, s := range snapshots {
		loaded[s.Stream] = Stream{Snapshot: &s}
	}

	for i, stream := range streams {
		if s := loaded[stream].Snapshot; s != nil {
			after[i] = int32(s.Version) //nolint:gosec // streams are short
		}
	}

	// The lateral join makes Postgres look up each stream by the primary key.
	events, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Event], `
		SELECT `+columns+`
		FROM unnest($1::text[], $2::int[]) AS s (stream, after)
		CROSS JOIN LATERAL (SELECT * FROM events x WHERE x.stream = s.stream AND x.version > s.after ORDER BY x.version OFFSET 0) AS e`,
		streams, after)
	if err != nil {
		return nil, fmt.Errorf("loading streams: %w", err)
	}

	for _, e := range events {
		s := loaded[e.Stream]
		s.Events = append(s.Events, e)
		loaded[e.Stream] = s
	}

	return loaded, nil
}

// SaveSnapshots stores snapshots in tx, replacing older ones.
func SaveSnapshots(ctx context.Context, tx pgx.Tx, snapshots []Snapshot) error {
	batch := &pgx.Batch{}
	for _, s := range snapshots {
		batch.Queue(`
			INSERT INTO snapshots (stream, version, schema, data) VALUES ($1, $2, $3, $4)
			ON CONFLICT (stream) DO UPDATE
			SET version = excluded.version, schema = excluded.schema, data = excluded.data, taken_at = now()
			WHERE snapshots.version < excluded.version OR snapshots.schema <> excluded.schema`,
			s.Stream, s.Version, s.Schema, s.Data)
	}

	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("saving snapshots: %w", err)
	}

	return nil
}

// DropSnapshot deletes the snapshot of a stream, if any.
func DropSnapshot(ctx context.Context, tx pgx.Tx, stream string) error {
	if _, err := tx.Exec(ctx, `DELETE FROM snapshots WHERE stream = $1`, stream); err != nil {
		return fmt.Errorf("dropping snapshot of %s: %w", stream, err)
	}

	return nil
}
