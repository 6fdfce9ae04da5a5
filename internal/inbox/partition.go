package inbox

import (
	"context"
	"time"

	"github.com/millrace/millrace/internal/postgres"
)

// partitions of the inbox; the lock is "inbx" in ASCII.
var partitions = postgres.DailyPartitions{Table: "inbox", Lock: 0x696e6278}

// EnsurePartitions makes the partitions of the days around now; see
// postgres.DailyPartitions.
func EnsurePartitions(ctx context.Context, db postgres.Beginner, now time.Time) error {
	return partitions.Ensure(ctx, db, now)
}
