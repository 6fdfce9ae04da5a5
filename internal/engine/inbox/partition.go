package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// minRetention is above the redelivery window of every broker that forgets at
// all: what RabbitMQ or GoChannel give back unacknowledged comes at once.
const minRetention = time.Hour

// Config says how long the inbox remembers.
type Config struct {
	// Retention is how long an applied message is known. One that comes again
	// after that is applied again, so it is longer than any broker, replay or
	// restore can bring one back.
	Retention time.Duration `koanf:"retention"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Retention: 7 * 24 * time.Hour} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	if c.Retention < minRetention {
		return fmt.Errorf("inbox.retention: is %s, expected at least %s, and more than brokers keep messages", c.Retention, minRetention)
	}

	return nil
}

var partitions = postgres.DailyPartitions{Table: "inbox"}

// EnsurePartitions makes the partitions of the days around now; see
// postgres.DailyPartitions.
func EnsurePartitions(ctx context.Context, db postgres.Beginner, now time.Time) error {
	return partitions.Ensure(ctx, db, now)
}

// DropPartitions drops the partitions that hold nothing but what was applied
// before a time, and whose ids are older. It returns how many went.
func DropPartitions(ctx context.Context, db postgres.Beginner, before time.Time) (int64, error) {
	return partitions.Drop(ctx, db, before, "applied_at")
}

// DeleteUndated deletes the rows of the default partition that were applied
// before a time: those of ids without a time in them, or with one that is far
// away. It returns how many went.
func DeleteUndated(ctx context.Context, pool *pgxpool.Pool, before time.Time) (int64, error) {
	return postgres.DeleteBefore(ctx, pool, partitions.Table+"_default", "applied_at", before)
}
