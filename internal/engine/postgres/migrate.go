package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/migrations"
)

// Migration is one numbered step of the schema.
type Migration struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
}

// lockPatience is how long Migrate retries a migration that cannot get its locks.
const lockPatience = time.Minute

// Migrate applies all pending migrations and returns them. One replica at a time
// migrates; the others wait. A migration that cannot get a lock within half a second is
// rolled back, because the running service's statements queue behind it. It is retried
// for a minute; then Migrate returns an error that names the oldest transactions.
func Migrate(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) ([]Migration, error) {
	return migrate(ctx, pool, migrations.FS, lockPatience, logger)
}

func migrate(ctx context.Context, pool *pgxpool.Pool, files fs.FS, patience time.Duration, logger *slog.Logger) ([]Migration, error) {
	provider, closeDB, err := newProvider(pool, files)
	if err != nil {
		return nil, err
	}
	defer closeDB()

	var applied []Migration

	up := func() error {
		results, err := provider.Up(ctx)
		if partial, ok := errors.AsType[*goose.PartialError](err); ok {
			results, err = partial.Applied, fmt.Errorf("%s: %w", partial.Failed.Source.Path, partial.Err)
		}

		for _, r := range results {
			applied = append(applied, Migration{Version: r.Source.Version, Name: r.Source.Path, Applied: true})
			logger.Info("applied migration", slog.String("name", r.Source.Path), slog.Duration("took", r.Duration))
		}

		return err
	}

	deadline := time.Now().Add(patience)

	err = backoff.Until(ctx, func() error {
		err := up()
		if err == nil {
			return nil
		}

		if !IsContention(err) {
			return backoff.Final(err)
		}

		err = fmt.Errorf("a migration could not get a lock: %w%s", err, oldest(ctx, pool))
		if time.Now().After(deadline) {
			return backoff.Final(fmt.Errorf("%w: end these transactions and run `millrace migrate up` again; no part of the migration was applied", err))
		}

		logger.Warn("retrying a migration; other statements can run before the next attempt", slog.Any("error", err))

		return err
	})

	if server, ok := errors.AsType[*pgconn.PgError](err); ok && server.Code == insufficientPrivilege {
		err = fmt.Errorf("%w: run `millrace migrate up` as the owner of the database, and the service with postgres.migrate_on_start: false", err)
	}

	if err != nil {
		return nil, fmt.Errorf("applying migrations: %w", err)
	}

	return applied, nil
}

// oldest describes the oldest transactions in the database, one of which probably holds
// the lock.
func oldest(ctx context.Context, db Querier) string {
	list, err := Collect(ctx, db, pgx.RowTo[string], `
		SELECT format('process %s (%s, user %s) for %s s', pid, coalesce(nullif(application_name, ''), 'without a name'), usename, extract(epoch FROM clock_timestamp() - xact_start)::int)
		FROM pg_stat_activity
		WHERE datname = current_database() AND xact_start < clock_timestamp() - interval '`+lockWait+`' AND pid <> pg_backend_pid()
		ORDER BY xact_start LIMIT 3`)
	if err != nil || len(list) == 0 {
		return ""
	}

	return "; open transactions: " + strings.Join(list, ", ")
}

// Migrations lists all migrations and whether they are applied.
func Migrations(ctx context.Context, pool *pgxpool.Pool) ([]Migration, error) {
	provider, closeDB, err := newProvider(pool, migrations.FS)
	if err != nil {
		return nil, err
	}
	defer closeDB()

	statuses, err := provider.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading migration status: %w", err)
	}

	return Column(statuses, func(s *goose.MigrationStatus) Migration {
		return Migration{Version: s.Source.Version, Name: s.Source.Path, Applied: s.State == goose.StateApplied}
	}), nil
}

// CreatedAt returns when the first migration was applied. A backup preserves that time.
func CreatedAt(ctx context.Context, db Querier) (time.Time, error) {
	rows, err := db.Query(ctx, `SELECT min(tstamp)::timestamptz FROM goose_db_version`)
	if err != nil {
		return time.Time{}, err
	}

	return pgx.CollectExactlyOneRow(rows, pgx.RowTo[time.Time])
}

// A replica asks for the lock every second, for at most an hour.
const (
	lockEvery    = 1 // in seconds
	lockAttempts = 3600
)

func newProvider(pool *pgxpool.Pool, files fs.FS) (*goose.Provider, func(), error) {
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(int64(LockMigrations)), lock.WithLockTimeout(lockEvery, lockAttempts))
	if err != nil {
		return nil, nil, fmt.Errorf("creating migration lock: %w", err)
	}

	// The lock belongs to a session.
	db := stdlib.OpenDB(*pool.Config().ConnConfig, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET lock_timeout = '`+lockWait+`'`)

		return err
	}))

	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker))
	if err != nil {
		_ = db.Close()

		return nil, nil, fmt.Errorf("reading migrations: %w", err)
	}

	return provider, func() { _ = db.Close() }, nil
}
