// Package analytics keeps what users did: each tracked event as it came, for a
// while, and how often each occurred a day, for ever.
package analytics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Topic carries the events to track.
const Topic = "analytics.track"

// Config says how long to keep what.
type Config struct {
	// Retention is how long the events themselves are kept; 0 is for ever.
	// Daily counts always are.
	Retention time.Duration `koanf:"retention"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Retention: 90 * 24 * time.Hour} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	if c.Retention != 0 && c.Retention < 48*time.Hour {
		return fmt.Errorf("analytics.retention: is %s, expected at least 48h, or 0 for ever", c.Retention)
	}

	return nil
}

// maxName bounds the name of an event, in characters.
const maxName = 200

// Tracked is an event that a user's action caused.
type Tracked struct {
	Event     string    `json:"event"`
	Timestamp Timestamp `json:"timestamp"`
	UserID    string    `json:"user_id,omitempty"`
	// Properties are any JSON object.
	Properties json.RawMessage `json:"properties,omitempty"`
}

// Topic implements event.Payload.
func (Tracked) Topic() string { return Topic }

// Key implements event.Payload.
func (t Tracked) Key() string { return t.UserID }

// Validate implements event.Payload.
func (t Tracked) Validate() error {
	var errs []error

	switch n := utf8.RuneCountInString(t.Event); {
	case strings.TrimSpace(t.Event) == "":
		errs = append(errs, fmt.Errorf("event: is missing, expected a name of 1 to %d characters", maxName))
	case n > maxName:
		errs = append(errs, fmt.Errorf("event: has %d characters, expected at most %d", n, maxName))
	case event.Text(t.Event) != t.Event:
		errs = append(errs, fmt.Errorf("event: is %+q, expected printable characters", t.Event))
	}

	if t.Timestamp.IsZero() {
		errs = append(errs, errors.New("timestamp: is missing, expected a time such as 2026-01-31T12:00:00Z"))
	}

	if len(t.UserID) > event.MaxID || !event.Printable(t.UserID) {
		errs = append(errs, fmt.Errorf("user_id: is %+q, expected at most %d printable bytes", t.UserID[:min(len(t.UserID), event.MaxID)], event.MaxID))
	}

	if p := strings.TrimSpace(string(t.Properties)); p != "" && p != "null" {
		if p[0] != '{' {
			errs = append(errs, errors.New("properties: is no object, expected a JSON object"))
		} else if err := event.CheckStorable(t.Properties); err != nil {
			errs = append(errs, fmt.Errorf("properties: %w", err))
		}
	}

	return errors.Join(errs...)
}

// Timestamp is a time as producers write it: RFC 3339, the same without a zone
// (as Python's isoformat gives it, taken as UTC), or a number of seconds or
// milliseconds since 1970.
type Timestamp struct{ time.Time }

// Bounds of a timestamp: what Go, Postgres and JSON agree on.
var (
	earliest = time.Unix(0, 0)
	latest   = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
)

// millisFrom is the number from which on it counts milliseconds: as seconds it
// would be in the year 5138.
const millisFrom = 1e11

// UnmarshalJSON reads any of the forms.
func (t *Timestamp) UnmarshalJSON(data []byte) error {
	parsed, err := read(data)
	if err != nil {
		return err
	}

	if parsed.Before(earliest) || !parsed.Before(latest) {
		return errors.New("is out of range, expected a time from 1970 to 9998")
	}

	t.Time = parsed

	return nil
}

func read(data []byte) (time.Time, error) {
	var (
		text   string
		number float64
	)

	if data[0] == '"' && json.Unmarshal(data, &text) == nil && text != "" {
		return parse(text)
	}

	if data[0] == 'n' || json.Unmarshal(data, &number) != nil {
		return time.Time{}, errors.New("is no time, expected one such as 2026-01-31T12:00:00Z or seconds since 1970")
	}

	if number >= millisFrom {
		number /= 1000
	}

	number = max(-1, min(number, float64(latest.Unix()))) // further out does not matter

	return time.UnixMicro(int64(number * 1e6)).UTC(), nil
}

func parse(text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999", time.DateOnly} {
		if parsed, err := time.Parse(layout, text); err == nil {
			return parsed.UTC(), nil
		}
	}

	return time.Time{}, fmt.Errorf("is %.60q, expected a time such as 2026-01-31T12:00:00Z", text)
}

// partitions of the events; the lock is "anly" in ASCII.
var partitions = postgres.DailyPartitions{Table: "analytics_events", Lock: 0x616e6c79}

// Service stores and counts events.
type Service struct {
	cfg  Config
	pool *pgxpool.Pool
}

// NewService returns a service on pool.
func NewService(cfg Config, pool *pgxpool.Pool) *Service {
	return &Service{cfg: cfg, pool: pool}
}

// EnsurePartitions makes the partitions of the days to come.
func (s *Service) EnsurePartitions(ctx context.Context, now time.Time) error {
	return partitions.Ensure(ctx, s.pool, now)
}

// Clean drops the partitions that are past their retention, and deletes what
// the default partition has of those days. It returns how many partitions and
// rows went.
func (s *Service) Clean(ctx context.Context, now time.Time) (int64, error) {
	if s.cfg.Retention == 0 {
		return 0, nil
	}

	before := now.Add(-s.cfg.Retention)

	dropped, err := partitions.Drop(ctx, s.pool, before, "")
	if err != nil {
		return dropped, err
	}

	deleted, err := postgres.DeleteBefore(ctx, s.pool, partitions.Table+"_default", "day", before)

	return dropped + deleted, err
}

// Track stores and counts a batch of events.
func (s *Service) Track(ctx context.Context, tx pgx.Tx, events []event.Event[Tracked]) ([]event.Outgoing, error) {
	var (
		messages   = make([]uuid.UUID, len(events))
		names      = make([]string, len(events))
		times      = make([]time.Time, len(events))
		users      = make([]string, len(events))
		properties = make([]*string, len(events))
	)

	for i, e := range events {
		messages[i], names[i], times[i], users[i] = e.ID, e.Payload.Event, e.Payload.Timestamp.Time, e.Payload.UserID

		if text := string(e.Payload.Properties); text != "" && text != "null" {
			properties[i] = &text
		}
	}

	// Counts in order of their key, so that two batches never wait for each
	// other in a circle.
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
		messages, names, times, users, properties)
	if err != nil {
		return nil, fmt.Errorf("tracking events: %w", err)
	}

	return nil, nil
}

// Count is how often an event occurred.
type Count struct {
	Event string `json:"event"`
	Count int64  `json:"count"`
}

// Top returns the most frequent events of the last days, today included.
func (s *Service) Top(ctx context.Context, days, limit int) ([]Count, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT event, sum(count)::bigint FROM analytics_daily
		WHERE day > (now() AT TIME ZONE 'UTC')::date - $1::int
		GROUP BY event ORDER BY 2 DESC, 1 LIMIT $2`, days, limit)
	if err != nil {
		return nil, fmt.Errorf("counting events: %w", err)
	}

	counts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Count])
	if err != nil {
		return nil, fmt.Errorf("counting events: %w", err)
	}

	return counts, nil
}

// Day is how often an event, or any, occurred on a day (UTC).
type Day struct {
	Day   time.Time `json:"day"`
	Count int64     `json:"count"`
}

// Daily returns the counts of the last days, oldest first, also of days
// without any. An empty name counts all events.
func (s *Service) Daily(ctx context.Context, name string, days int) ([]Day, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT d::date, coalesce(sum(a.count), 0)::bigint
		FROM generate_series((now() AT TIME ZONE 'UTC')::date - ($2::int - 1), (now() AT TIME ZONE 'UTC')::date, interval '1 day') AS d
		LEFT JOIN analytics_daily a ON a.day = d::date AND ($1 = '' OR a.event = $1)
		GROUP BY 1 ORDER BY 1`, name, days)
	if err != nil {
		return nil, fmt.Errorf("counting days: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Day])
	if err != nil {
		return nil, fmt.Errorf("counting days: %w", err)
	}

	return list, nil
}
