package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/internal/postgres"
)

// partitionsAhead is how many days from today have a partition of their own.
const partitionsAhead = 7

// partitionLock is the advisory lock under which partitions are made:
// "inbx" in ASCII.
const partitionLock = 0x696e6278

// EnsurePartitions makes the partitions from yesterday until a week ahead.
// Rows that came to the default partition before theirs existed are moved.
// Call it at start and daily.
func EnsurePartitions(ctx context.Context, db postgres.Beginner, now time.Time) error {
	today := now.UTC().Truncate(24 * time.Hour)

	for offset := -1; offset <= partitionsAhead; offset++ {
		if err := ensurePartition(ctx, db, today.AddDate(0, 0, offset)); err != nil {
			return err
		}
	}

	return nil
}

func ensurePartition(ctx context.Context, db postgres.Beginner, day time.Time) error {
	name := "inbox_" + day.Format("20060102")
	from, to := day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)

	err := postgres.InTx(ctx, db, func(tx pgx.Tx) error {
		var exists bool

		if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&exists); err != nil || exists {
			return err
		}

		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, partitionLock); err != nil {
			return err
		}

		// Another replica may have made it while this one waited.
		if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&exists); err != nil || exists {
			return err
		}

		_, err := tx.Exec(ctx, fmt.Sprintf(`
			LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE;
			CREATE TABLE %[1]s (LIKE inbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
			WITH early AS (DELETE FROM inbox_default WHERE day = '%[2]s' RETURNING consumer, message_id, day, fingerprint, applied_at)
			INSERT INTO %[1]s (consumer, message_id, day, fingerprint, applied_at) SELECT * FROM early;
			ALTER TABLE inbox ATTACH PARTITION %[1]s FOR VALUES FROM ('%[2]s') TO ('%[3]s')`, name, from, to))

		return err
	})
	if err != nil {
		return fmt.Errorf("creating inbox partition %s: %w", name, err)
	}

	return nil
}
