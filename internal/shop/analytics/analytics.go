// Package analytics stores tracked events for a limited time, and keeps their daily
// counts indefinitely.
package analytics

import (
	"context"
	"encoding/json"
	"errors"
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

// Topic carries the events to track.
const Topic = "analytics.track"

// Config sets the retention.
type Config struct {
	// Retention is how long events are kept, at least 48h; 0 keeps them
	// indefinitely. Daily counts are always kept. Defaults to 2160h.
	Retention time.Duration `koanf:"retention"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Retention: 90 * 24 * time.Hour} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	return check.Value(c.Retention == 0 || c.Retention >= 48*time.Hour, "analytics.retention", c.Retention, "at least 48h, or 0 for no limit")
}

// maxName is the maximum length of an event's name, in characters.
const maxName = 200

// Limits on a timestamp, because each day with events has rows in analytics_daily.
var (
	earliest = time.Unix(0, 0)
	latest   = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Tracked is a user's action.
type Tracked struct {
	Event     string     `doc:"The name of the event." format:"text"    json:"event"             maxLength:"200" minLength:"1"`
	Timestamp event.Time `doc:"When it happened."      json:"timestamp"`
	UserID    string     `doc:"The user."              format:"id"      json:"user_id,omitempty"`
	// Properties is any JSON object.
	Properties json.RawMessage `doc:"Any JSON object." format:"object" json:"properties,omitempty"`
}

// Topic implements event.Payload.
func (Tracked) Topic() string { return Topic }

// Key implements event.Payload.
func (t Tracked) Key() string { return t.UserID }

// Subject implements event.Personal.
func (t Tracked) Subject() string { return t.UserID }

// Marks implements event.Personal.
func (Tracked) Marks() []string { return nil }

// Validate implements event.Payload.
func (t Tracked) Validate() error {
	errs := []error{event.CheckText("event", t.Event, maxName), event.CheckOptionalID("user_id", t.UserID)}

	if strings.TrimSpace(t.Event) == "" {
		errs = append(errs, fmt.Errorf("event: is missing, expected a name of 1 to %d characters", maxName))
	}

	switch {
	case t.Timestamp.IsZero():
		errs = append(errs, errors.New("timestamp: is missing, expected a time such as 2026-01-31T12:00:00Z"))
	case t.Timestamp.Before(earliest) || !t.Timestamp.Before(latest):
		errs = append(errs, errors.New("timestamp: is out of range, expected a time from 1970 to 9998"))
	}

	if p := strings.TrimSpace(string(t.Properties)); p != "" && p != "null" {
		if p[0] != '{' {
			errs = append(errs, errors.New("properties: is not an object, expected a JSON object"))
		} else if err := event.CheckStorable(t.Properties); err != nil {
			errs = append(errs, fmt.Errorf("properties: %w", err))
		}
	}

	return errors.Join(errs...)
}

// partitions are the daily partitions of the events table.
var partitions = postgres.DailyPartitions{Table: "analytics_events"}

// Service stores and counts events.
type Service struct {
	cfg  Config
	pool *pgxpool.Pool
}

// NewService returns a service on pool.
func NewService(cfg Config, pool *pgxpool.Pool) *Service {
	return &Service{cfg: cfg, pool: pool}
}

// EnsurePartitions creates upcoming partitions.
func (s *Service) EnsurePartitions(ctx context.Context, now time.Time) error {
	return partitions.Ensure(ctx, s.pool, now)
}

// Clean drops expired partitions and deletes expired rows of the default
// partition. It returns the number of partitions and rows removed.
func (s *Service) Clean(ctx context.Context, now time.Time) (int64, error) {
	if s.cfg.Retention == 0 {
		return 0, nil
	}

	before := now.Add(-s.cfg.Retention)

	dropped, err := partitions.Drop(ctx, s.pool, before)
	if err != nil {
		return dropped, err
	}

	deleted, err := postgres.DeleteBefore(ctx, s.pool, partitions.Table+"_default", "day", before)

	return dropped + deleted, err
}

// Track stores and counts a batch of events.
func (s *Service) Track(ctx context.Context, tx pgx.Tx, events []event.Event[Tracked]) ([]event.Outgoing, error) {
	// Counts are written in order of their key, so two batches cannot deadlock.
	_, err := tx.Exec(ctx, `
		WITH tracked AS (
			SELECT (occurred_at AT TIME ZONE 'UTC')::date AS day, message_id, event, occurred_at, NULLIF(user_id, ''), properties
			FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::text[], $5::jsonb[])
			     AS t (message_id, event, occurred_at, user_id, properties)
		), stored AS (
			INSERT INTO analytics_events SELECT * FROM tracked
		)
		INSERT INTO analytics_daily (day, event, count)
		SELECT day, event, count(*) FROM tracked GROUP BY day, event ORDER BY day, event
		ON CONFLICT (day, event) DO UPDATE SET count = analytics_daily.count + excluded.count`,
		postgres.Column(events, func(e event.Event[Tracked]) uuid.UUID { return e.ID }),
		postgres.Column(events, func(e event.Event[Tracked]) string { return e.Payload.Event }),
		postgres.Column(events, func(e event.Event[Tracked]) time.Time { return e.Payload.Timestamp.Time }),
		postgres.Column(events, func(e event.Event[Tracked]) string { return e.Payload.UserID }),
		postgres.Column(events, properties))
	if err != nil {
		return nil, fmt.Errorf("tracking events: %w", err)
	}

	return nil, nil
}

// Forget removes the user and the properties from a user's events, and returns the
// number of events. The counts stay. It reads all events, because there is no index on
// users.
func (s *Service) Forget(ctx context.Context, tx pgx.Tx, userID string, _ bool) (int64, error) {
	tag, err := tx.Exec(ctx, `UPDATE analytics_events SET user_id = NULL, properties = NULL WHERE user_id = $1`, userID)
	if err != nil {
		return 0, fmt.Errorf("forgetting the events of user %s: %w", userID, err)
	}

	return tag.RowsAffected(), nil
}

// properties returns the properties of an event, or nil for NULL.
func properties(e event.Event[Tracked]) *string {
	text := string(e.Payload.Properties)
	if text == "" || text == "null" {
		return nil
	}

	return &text
}

// Count is the number of times an event occurred.
type Count struct {
	Event string `json:"event"`
	Count int64  `json:"count"`
}

// Top returns the most frequent events of the given number of days, up to today.
func (s *Service) Top(ctx context.Context, days, limit int) ([]Count, error) {
	counts, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Count], `
		SELECT event, sum(count)::bigint FROM analytics_daily
		WHERE day > (now() AT TIME ZONE 'UTC')::date - $1::int
		GROUP BY event ORDER BY 2 DESC, 1 LIMIT $2`, days, limit)
	if err != nil {
		return nil, fmt.Errorf("counting events: %w", err)
	}

	return counts, nil
}

// CountTop counts the events that Top lists; see [postgres.CountRows].
func (s *Service) CountTop(ctx context.Context, days int) (int, error) {
	return postgres.CountRows(ctx, s.pool, `
		SELECT DISTINCT event FROM analytics_daily WHERE day > (now() AT TIME ZONE 'UTC')::date - $1::int`, days)
}

// Day is the number of times one event, or all events together, occurred on a day (UTC).
type Day struct {
	Day   time.Time `json:"day"`
	Count int64     `json:"count"`
}

// Daily returns the counts for the given number of days up to today, oldest first,
// including days without events. An empty name counts all events.
func (s *Service) Daily(ctx context.Context, name string, days int) ([]Day, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Day], `
		SELECT d::date, coalesce(sum(a.count), 0)::bigint
		FROM generate_series((now() AT TIME ZONE 'UTC')::date - ($2::int - 1), (now() AT TIME ZONE 'UTC')::date, interval '1 day') AS d
		LEFT JOIN analytics_daily a ON a.day = d::date AND ($1 = '' OR a.event = $1)
		GROUP BY 1 ORDER BY 1`, name, days)
	if err != nil {
		return nil, fmt.Errorf("counting events by day: %w", err)
	}

	return list, nil
}
