package inbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// minRetention exceeds the redelivery window of all brokers. RabbitMQ redelivers
// unacknowledged messages immediately.
const minRetention = time.Hour

// Config configures the inbox.
type Config struct {
	// Retention is how long an applied message is recognized. A message redelivered
	// after that is applied again, so Retention must exceed the age of replays and
	// restores. An older message from a log, such as a Kafka record, is stopped.
	// Defaults to 168h.
	Retention time.Duration `koanf:"retention"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Retention: 7 * 24 * time.Hour} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	return check.Value(c.Retention >= minRetention, "inbox.retention", c.Retention, "at least 1h, and longer than brokers keep messages")
}

// Partitions describes the partitions of table inbox. Drop keeps partitions with rows
// applied after the given time.
var Partitions = postgres.DailyPartitions{Table: "inbox", Written: "applied_at"}

// DeleteUndated deletes the rows of the default partition that were applied before
// the given time, and returns their number. These are rows whose IDs have no time, or
// a distant one.
func DeleteUndated(ctx context.Context, pool *pgxpool.Pool, before time.Time) (int64, error) {
	return postgres.DeleteBefore(ctx, pool, Partitions.Table+"_default", "applied_at", before)
}
