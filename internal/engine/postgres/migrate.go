package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/millracehq/millrace/migrations"
)

// Migration is one numbered step of the schema.
type Migration struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
}

// Migrate applies all pending migrations and returns them. One replica at a time
// migrates; the others wait.
func Migrate(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) ([]Migration, error) {
	provider, closeDB, err := newProvider(pool)
	if err != nil {
		return nil, err
	}
	defer closeDB()

	results, err := provider.Up(ctx)
	if err != nil {
		if server, ok := errors.AsType[*pgconn.PgError](err); ok && server.Code == insufficientPrivilege {
			err = fmt.Errorf("%w: run `millrace migrate up` as the owner of the database, and the service with postgres.migrate_on_start: false", err)
		}

		return nil, fmt.Errorf("applying migrations: %w", err)
	}

	applied := make([]Migration, len(results))
	for i, r := range results {
		applied[i] = Migration{Version: r.Source.Version, Name: r.Source.Path, Applied: true}
		logger.Info("applied migration", slog.String("name", r.Source.Path), slog.Duration("took", r.Duration))
	}

	return applied, nil
}

// Migrations lists all migrations and whether they are applied.
func Migrations(ctx context.Context, pool *pgxpool.Pool) ([]Migration, error) {
	provider, closeDB, err := newProvider(pool)
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

// CreatedAt returns when the first migration was applied. A backup keeps that time.
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

func newProvider(pool *pgxpool.Pool) (*goose.Provider, func(), error) {
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(int64(LockMigrations)), lock.WithLockTimeout(lockEvery, lockAttempts))
	if err != nil {
		return nil, nil, fmt.Errorf("creating migration lock: %w", err)
	}

	// The lock belongs to a session.
	db := stdlib.OpenDB(*pool.Config().ConnConfig)

	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS, goose.WithSessionLocker(locker))
	if err != nil {
		_ = db.Close()

		return nil, nil, fmt.Errorf("reading migrations: %w", err)
	}

	return provider, func() { _ = db.Close() }, nil
}
