package user

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Projection maintains the table users.
func Projection() eventstore.Projection {
	return eventstore.Projection{Name: "users", Tables: []string{"users"}, Streams: streamPrefix, Apply: project}
}

// row is a row of the table.
type row struct {
	User

	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// project applies events to the rows of their users.
func project(ctx context.Context, tx pgx.Tx, events []eventstore.Event) error {
	ids := postgres.Column(events, userOf)

	rings, err := loadKeys(ctx, tx, selectKeys, ids)
	if err != nil {
		return err
	}

	found, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[row], `
		SELECT id, version, coalesce(name, ''), coalesce(email, ''), properties, erased, created_at, updated_at FROM users WHERE id = ANY($1)`, ids)
	if err != nil {
		return fmt.Errorf("reading users: %w", err)
	}

	rows := make(map[string]row, len(ids))
	for _, r := range found {
		rows[r.ID] = r
	}

	for _, e := range events {
		id := userOf(e)

		r, known := rows[id]
		if !known {
			r = row{User: User{ID: id}, CreatedAt: e.RecordedAt}
		}

		data, err := rings[id].decode(e)
		if err != nil {
			return err
		}

		r.User, r.UpdatedAt = r.Apply(data), e.RecordedAt

		// An erased user stays empty even if the Erased event has yet to be projected.
		if rings[id].aead == nil {
			r.User = User{ID: id, Version: r.Version, Erased: true}
		}

		rows[id] = r
	}

	return store(ctx, tx, slices.Collect(maps.Values(rows)))
}

func userOf(e eventstore.Event) string { return e.Stream[len(streamPrefix):] }

func store(ctx context.Context, tx pgx.Tx, rows []row) error {
	data, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encoding users: %w", err)
	}

	_, err = tx.Exec(ctx, `
		INSERT INTO users (id, version, name, email, properties, created_at, updated_at, erased)
		SELECT id, version, CASE WHEN NOT erased THEN name END, CASE WHEN NOT erased THEN email END,
		       coalesce(properties, '{}'), created_at, updated_at, erased
		FROM json_to_recordset($1) AS r (id text, version int, name text, email text, properties jsonb,
		                                 created_at timestamptz, updated_at timestamptz, erased boolean)
		ON CONFLICT (id) DO UPDATE SET version = excluded.version, name = excluded.name, email = excluded.email,
			properties = excluded.properties, updated_at = excluded.updated_at, erased = excluded.erased`, data)
	if err != nil {
		return fmt.Errorf("storing users: %w", err)
	}

	return nil
}
