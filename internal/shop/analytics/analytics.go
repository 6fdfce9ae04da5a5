// Package analytics stores tracked events for a limited time, and counts them
// by day without a limit.
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

// Tracked is an action of a user.
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

// Subject implements event.Personal.
func (t Tracked) Subject() string { return t.UserID }

// Marks implements event.Personal.
func (Tracked) Marks() []string { return nil }

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

	errs = append(errs, check.That(!t.Timestamp.IsZero(), "timestamp: is missing, expected a time such as 2026-01-31T12:00:00Z"))

	if len(t.UserID) > event.MaxID || !event.Printable(t.UserID) {
		errs = append(errs, fmt.Errorf("user_id: is %+q, expected at most %d printable bytes", t.UserID[:min(len(t.UserID), event.MaxID)], event.MaxID))
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

// Timestamp is a time in one of the forms that producers use: RFC 3339, the
// same without a zone (Python's isoformat, read as UTC), or a number of seconds
// or milliseconds since 1970.
type Timestamp struct{ time.Time }

// Bounds of a timestamp that Go, Postgres and JSON can all represent.
var (
	earliest = time.Unix(0, 0)
	latest   = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
)

// minMillis is the smallest number that is read as milliseconds. As seconds it
// would be in the year 5138.
const minMillis = 1e11

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
		return time.Time{}, errors.New("is not a time, expected one such as 2026-01-31T12:00:00Z or seconds since 1970")
	}

	if number >= minMillis {
		number /= 1000
	}

	number = max(-1, min(number, float64(latest.Unix()))) // the conversion to int64 must not overflow

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

// partitions are those of the events, one a day.
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

// Forget removes from events who did them and their properties, and returns the number
// of events. Their counts stay. It reads all events, because they have no index on users.
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

// Count is how often an event occurred.
type Count struct {
	Event string `json:"event"`
	Count int64  `json:"count"`
}

// Top returns the most frequent events of the last days, including today.
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

// Day is how often one event, or all together, occurred on a day (UTC).
type Day struct {
	Day   time.Time `json:"day"`
	Count int64     `json:"count"`
}

// Daily returns the counts of the last days, oldest first, including days
// without events. An empty name counts all events.
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
