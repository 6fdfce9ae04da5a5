package inbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// minRetention is longer than the redelivery window of every broker. RabbitMQ and
// GoChannel redeliver unacknowledged messages at once.
const minRetention = time.Hour

// Config tunes the inbox.
type Config struct {
	// Retention is how long an applied message is recognized. A message that is
	// redelivered later is applied again, so it must exceed the retention of every
	// broker, replay and restore. Defaults to 168h.
	Retention time.Duration `koanf:"retention"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Retention: 7 * 24 * time.Hour} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	return check.Value(c.Retention >= minRetention, "inbox.retention", c.Retention, "at least 1h, and more than brokers keep messages")
}

// Partitions are those of the table inbox. Drop keeps partitions with rows that
// were applied after the given time.
var Partitions = postgres.DailyPartitions{Table: "inbox", Written: "applied_at"}

// DeleteUndated deletes the rows of the default partition that were applied before a
// time: those whose ids have no time, or a distant one. It returns how many it
// deleted.
func DeleteUndated(ctx context.Context, pool *pgxpool.Pool, before time.Time) (int64, error) {
	return postgres.DeleteBefore(ctx, pool, Partitions.Table+"_default", "applied_at", before)
}
