package user

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Projection maintains the table users.
func Projection() eventstore.Projection {
	return eventstore.Projection{Name: "users", Tables: []string{"users"}, Apply: project}
}

// row is a row of the table with the times of the user's first and last event.
type row struct {
	User

	created, updated time.Time
}

// project applies events to the rows of their users.
func project(ctx context.Context, tx pgx.Tx, events []eventstore.Event) error {
	var (
		ours []eventstore.Event
		ids  []string
		seen = map[string]bool{}
	)

	for _, e := range events {
		if id, ok := strings.CutPrefix(e.Stream, streamPrefix); ok {
			ours = append(ours, e)

			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}

	if len(ours) == 0 {
		return nil
	}

	rings, err := loadKeys(ctx, tx, `SELECT user_id, key FROM user_keys WHERE user_id = ANY($1)`, ids)
	if err != nil {
		return err
	}

	rows, err := current(ctx, tx, ids)
	if err != nil {
		return err
	}

	for _, e := range ours {
		id := e.Stream[len(streamPrefix):]

		r, known := rows[id]
		if !known {
			r = row{User: User{ID: id}, created: e.RecordedAt}
		}

		data, err := rings[id].decode(e)
		if err != nil {
			return err
		}

		r.User, r.updated = r.Apply(data), e.RecordedAt
		rows[id] = r
	}

	// An erased user stays empty even if the Erased event has yet to be projected.
	for id, r := range rows {
		if rings[id].aead == nil {
			r.User = User{ID: id, Version: r.Version, Erased: true}
			rows[id] = r
		}
	}

	return store(ctx, tx, rows)
}

func current(ctx context.Context, db postgres.Querier, ids []string) (map[string]row, error) {
	found, err := db.Query(ctx, `
		SELECT id, version, coalesce(name, ''), coalesce(email, ''), properties, erased, created_at FROM users WHERE id = ANY($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("reading users: %w", err)
	}

	rows := make(map[string]row, len(ids))

	var (
		r          row
		properties []byte
	)

	_, err = pgx.ForEachRow(found, []any{&r.ID, &r.Version, &r.Name, &r.Email, &properties, &r.Erased, &r.created}, func() error {
		r.Properties = nil
		if err := json.Unmarshal(properties, &r.Properties); err != nil {
			return err
		}

		rows[r.ID] = r

		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading users: %w", err)
	}

	return rows, nil
}

func store(ctx context.Context, tx pgx.Tx, rows map[string]row) error {
	var (
		ids, properties  []string
		names, emails    []*string
		versions         []int32
		created, updated []time.Time
		erased           []bool
	)

	for _, r := range rows {
		encoded := []byte("{}")

		if len(r.Properties) > 0 {
			var err error
			if encoded, err = json.Marshal(r.Properties); err != nil {
				return fmt.Errorf("encoding properties of user %s: %w", r.ID, err)
			}
		}

		ids, properties = append(ids, r.ID), append(properties, string(encoded))
		versions, erased = append(versions, int32(r.Version)), append(erased, r.Erased) //nolint:gosec // few events
		created, updated = append(created, r.created), append(updated, r.updated)

		if r.Erased {
			names, emails = append(names, nil), append(emails, nil)
		} else {
			names, emails = append(names, &r.Name), append(emails, &r.Email)
		}
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO users (id, version, name, email, properties, created_at, updated_at, erased)
		SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::jsonb[], $6::timestamptz[], $7::timestamptz[], $8::boolean[])
		ON CONFLICT (id) DO UPDATE SET version = excluded.version, name = excluded.name, email = excluded.email,
			properties = excluded.properties, updated_at = excluded.updated_at, erased = excluded.erased`,
		ids, versions, names, emails, properties, created, updated, erased)
	if err != nil {
		return fmt.Errorf("storing users: %w", err)
	}

	return nil
}
