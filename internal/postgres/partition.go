package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// DailyPartitions is a table that is partitioned by a column day, with a
// default partition <table>_default and one <table>_YYYYMMDD for each day.
type DailyPartitions struct {
	Table string
	// Lock is the advisory lock under which partitions are made and dropped.
	Lock int64
}

// partitionsAhead is how many days from today have a partition of their own.
const partitionsAhead = 7

const partitionDay = "20060102"

// Ensure makes the partitions from yesterday until a week ahead. Rows that
// came to the default partition before theirs existed are moved. Call it at
// start and daily.
func (p DailyPartitions) Ensure(ctx context.Context, db Beginner, now time.Time) error {
	today := now.UTC().Truncate(24 * time.Hour)

	for offset := -1; offset <= partitionsAhead; offset++ {
		if err := p.ensure(ctx, db, today.AddDate(0, 0, offset)); err != nil {
			return err
		}
	}

	return nil
}

func (p DailyPartitions) ensure(ctx context.Context, db Beginner, day time.Time) error {
	name := p.Table + "_" + day.Format(partitionDay)
	from, to := day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)

	err := InTx(ctx, db, func(tx pgx.Tx) error {
		var exists bool

		if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&exists); err != nil || exists {
			return err
		}

		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, p.Lock); err != nil {
			return err
		}

		// Another replica may have made it while this one waited.
		if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&exists); err != nil || exists {
			return err
		}

		_, err := tx.Exec(ctx, fmt.Sprintf(`
			LOCK TABLE %[1]s IN ACCESS EXCLUSIVE MODE;
			CREATE TABLE %[2]s (LIKE %[1]s INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
			WITH early AS (DELETE FROM %[1]s_default WHERE day = '%[3]s' RETURNING *)
			INSERT INTO %[2]s SELECT * FROM early;
			ALTER TABLE %[1]s ATTACH PARTITION %[2]s FOR VALUES FROM ('%[3]s') TO ('%[4]s')`, p.Table, name, from, to))

		return err
	})
	if err != nil {
		return fmt.Errorf("creating partition %s: %w", name, err)
	}

	return nil
}

// Drop drops the partitions of days before the given one, and deletes what the
// default partition has of them. It returns how many partitions went.
func (p DailyPartitions) Drop(ctx context.Context, db Beginner, before time.Time) (dropped int, err error) {
	err = InTx(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, p.Lock); err != nil {
			return err
		}

		names, err := p.list(ctx, tx)
		if err != nil {
			return err
		}

		for _, name := range names {
			day, err := time.Parse(p.Table+"_"+partitionDay, name)
			if err != nil || !day.Before(before.UTC().Truncate(24*time.Hour)) {
				continue // the default partition, or one to keep
			}

			if _, err := tx.Exec(ctx, `DROP TABLE `+name); err != nil {
				return errors.Join(fmt.Errorf("dropping %s", name), err)
			}

			dropped++
		}

		_, err = tx.Exec(ctx, `DELETE FROM `+p.Table+`_default WHERE day < $1`, before)

		return err
	})
	if err != nil {
		return 0, fmt.Errorf("dropping partitions of %s: %w", p.Table, err)
	}

	return dropped, nil
}

func (p DailyPartitions) list(ctx context.Context, tx pgx.Tx) ([]string, error) {
	rows, err := tx.Query(ctx, `
		SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass ORDER BY 1`, p.Table)
	if err != nil {
		return nil, err
	}

	return pgx.CollectRows(rows, pgx.RowTo[string])
}
