package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DailyPartitions describes a table partitioned by column day, with a default
// partition <table>_default and a partition <table>_YYYYMMDD per day.
type DailyPartitions struct {
	Table string
	// Written is a column of type timestamptz. If it is set, Drop keeps partitions
	// with a row written after the given time.
	Written string
}

// partitionsAhead is the number of days ahead for which partitions exist.
const partitionsAhead = 7

const partitionDay = "20060102"

// lockWait bounds the wait for a table's lock. Readers and writers queue behind a waiting
// lock, so a long-running transaction would block them all.
const lockWait = "500ms"

const lockTimeout = `SET LOCAL lock_timeout = '` + lockWait + `'`

// Ensure creates the partitions from yesterday to a week ahead and moves their rows out
// of the default partition. Call it at startup and daily. While another transaction has
// the table locked, it returns an error for which IsUnavailable is true; try again later.
// If the role does not own the table, Ensure creates nothing, and returns an OwnerError
// if today's or tomorrow's partition is missing.
func (p DailyPartitions) Ensure(ctx context.Context, pool *pgxpool.Pool, now time.Time) error {
	today := now.UTC().Truncate(24 * time.Hour)

	present, err := p.partitions(ctx, pool)
	if err != nil {
		return err
	}

	err = CheckOwner(ctx, pool, p.Table)
	if foreign, ok := errors.AsType[*OwnerError](err); ok {
		if slices.Contains(present, p.name(today)) && slices.Contains(present, p.name(today.AddDate(0, 0, 1))) {
			return nil
		}

		return fmt.Errorf("creating partitions: %w: run `millrace upkeep` as %s, every day", foreign, foreign.Owner)
	}

	for offset := -1; offset <= partitionsAhead && err == nil; offset++ {
		if day := today.AddDate(0, 0, offset); !slices.Contains(present, p.name(day)) {
			err = p.create(ctx, pool, day)
		}
	}

	return err
}

// name returns the name of a day's partition.
func (p DailyPartitions) name(day time.Time) string { return p.Table + "_" + day.Format(partitionDay) }

// partitions returns the names of the table's partitions. It reads the catalog itself:
// to_regclass answers from a cache that still lacks what another session created
// while this one waited for an advisory lock.
func (p DailyPartitions) partitions(ctx context.Context, db Querier) ([]string, error) {
	names, err := Collect(ctx, db, pgx.RowTo[string], `
		SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass ORDER BY 1`, p.Table)
	if err != nil {
		return nil, fmt.Errorf("listing partitions of %s: %w", p.Table, err)
	}

	return names, nil
}

// lock serializes changes to the table's partitions and reports whether the partition
// with this name exists: another replica may have created or dropped it during the wait.
func (p DailyPartitions) lock(ctx context.Context, tx pgx.Tx, name string) (exists bool, err error) {
	if err := LockInTx(ctx, tx, LockPartitions, p.Table); err != nil {
		return false, err
	}

	present, err := p.partitions(ctx, tx)

	return slices.Contains(present, name), err
}

// create uses one transaction per partition, to hold its locks briefly.
func (p DailyPartitions) create(ctx context.Context, db Beginner, day time.Time) error {
	name := p.name(day)
	from, to := day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)

	err := InTx(ctx, db, func(tx pgx.Tx) error {
		if exists, err := p.lock(ctx, tx, name); err != nil || exists {
			return err
		}

		if _, err := tx.Exec(ctx, lockTimeout); err != nil {
			return err
		}

		if _, err := tx.Exec(ctx, fmt.Sprintf(`
			LOCK TABLE %[1]s IN ACCESS EXCLUSIVE MODE;
			CREATE TABLE %[2]s (LIKE %[1]s INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
			WITH early AS (DELETE FROM %[1]s_default WHERE day = '%[3]s' RETURNING *)
			INSERT INTO %[2]s SELECT * FROM early;
			ALTER TABLE %[1]s ATTACH PARTITION %[2]s FOR VALUES FROM ('%[3]s') TO ('%[4]s')`, p.Table, name, from, to)); err != nil {
			return err
		}

		return forgetFirstRange(ctx, tx, name)
	})
	if err != nil {
		return fmt.Errorf("creating partition %s: %w", name, err)
	}

	return nil
}

// forgetFirstRange removes the summaries of a new table's first pages from its BRIN
// indexes. An index that is created on an empty table summarizes the first range, so each
// insertion into it would rewrite the summary, with a bloom filter of kilobytes. Without a
// summary, Postgres makes one once the range is full, as it does for the other ranges.
func forgetFirstRange(ctx context.Context, tx pgx.Tx, table string) error {
	_, err := tx.Exec(ctx, `
		SELECT brin_desummarize_range(i.indexrelid, 0)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
		WHERE i.indrelid = $1::regclass AND a.amname = 'brin'`, table)

	return err
}

// Drop drops the partitions of days that ended before the given time and returns their
// number. While another transaction has the table locked, it returns an error for which
// IsUnavailable is true; try again later. If the role does not own the table, Drop leaves
// the partitions to the owner.
func (p DailyPartitions) Drop(ctx context.Context, pool *pgxpool.Pool, before time.Time) (dropped int64, err error) {
	if err := CheckOwner(ctx, pool, p.Table); err != nil {
		if _, ok := errors.AsType[*OwnerError](err); ok {
			return 0, nil
		}

		return 0, err
	}

	names, err := p.partitions(ctx, pool)
	if err != nil {
		return 0, err
	}

	for _, name := range names {
		day, err := time.Parse(p.Table+"_"+partitionDay, name)
		if err != nil || !day.Before(before.UTC().Truncate(24*time.Hour)) {
			continue // the default partition, or one to keep
		}

		gone, err := p.drop(ctx, pool, name, before)
		if err != nil {
			return dropped, fmt.Errorf("dropping partition %s: %w", name, err)
		}

		if gone {
			dropped++
		}
	}

	return dropped, nil
}

// drop uses one transaction per partition, to hold its locks briefly.
func (p DailyPartitions) drop(ctx context.Context, db Beginner, name string, before time.Time) (gone bool, err error) {
	err = InTx(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockTimeout); err != nil {
			return err
		}

		if gone, err = p.lock(ctx, tx, name); err != nil || !gone {
			return err
		}

		if p.Written != "" {
			// This blocks writers, which are unlikely because the day is long past.
			if _, err := tx.Exec(ctx, `LOCK TABLE `+name+` IN SHARE MODE`); err != nil {
				return err
			}

			err := tx.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM `+name+` WHERE `+p.Written+` >= $1)`, before).Scan(&gone)
			if err != nil || !gone {
				return err
			}
		}

		_, err := tx.Exec(ctx, `DROP TABLE `+name)

		return err
	})

	return gone && err == nil, err
}

// pagesAtOnce is how many pages DeleteBefore scans per transaction.
const pagesAtOnce = 256

// DeleteExpired deletes a table's rows in which the column is older than retention. A
// retention of 0 keeps all rows.
func DeleteExpired(ctx context.Context, pool *pgxpool.Pool, table, column string, retention time.Duration) (deleted int64, err error) {
	if retention == 0 {
		return 0, nil
	}

	return DeleteBefore(ctx, pool, table, column, time.Now().Add(-retention))
}

// DeleteBefore deletes a table's rows in which the column is before the given time. It
// scans the table in ranges of pages, one transaction per range, so it needs no index and
// reads nothing twice. Table and column must be plain SQL identifiers.
func DeleteBefore(ctx context.Context, pool *pgxpool.Pool, table, column string, before time.Time) (deleted int64, err error) {
	var pages int64
	if err := pool.QueryRow(ctx, `SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::int`, table).Scan(&pages); err != nil {
		return 0, fmt.Errorf("measuring %s: %w", table, err)
	}

	for page := int64(0); page < pages; page += pagesAtOnce {
		tag, err := pool.Exec(ctx, fmt.Sprintf(`DELETE FROM %s WHERE ctid >= '(%d,0)' AND ctid < '(%d,0)' AND %s < $1`,
			table, page, page+pagesAtOnce, column), before)
		if err != nil {
			return deleted, fmt.Errorf("deleting old rows of %s: %w", table, err)
		}

		deleted += tag.RowsAffected()
	}

	return deleted, nil
}
