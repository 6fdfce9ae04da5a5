// Package postgres opens the pool, runs transactions, takes locks, applies migrations
// and classifies errors. Queries live next to their callers.
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

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Config configures access to the database.
type Config struct {
	// URL is a libpq connection string. The environment variable DATABASE_URL also
	// sets it. Required.
	URL Secret `koanf:"url"`
	// DirectURL points to the server itself if URL points to a pooler that shares
	// sessions between clients, such as PgBouncer with pool_mode = transaction. It serves
	// what needs a session of its own: relays, advisory locks, migrations and audits.
	// Defaults to URL.
	DirectURL Secret `koanf:"direct_url"`
	// MaxConns is the maximum size of the pool. Defaults to 20.
	MaxConns int32 `koanf:"max_conns"`
	// MigrateOnStart applies pending migrations before serving. Defaults to true.
	MigrateOnStart bool `koanf:"migrate_on_start"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{MaxConns: 20, MigrateOnStart: true}
}

// form is what postgres.url looks like. A password after :// would be hidden as a secret.
const form = "postgres://host:5432/database with user:password@ before the host"

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	// Do not include the parser's error: it can quote the password.
	_, err := pgxpool.ParseConfig(string(c.URL))
	_, directErr := pgxpool.ParseConfig(string(c.DirectURL))

	return errors.Join(
		check.That(c.URL != "", "postgres.url: must not be empty: set it, or DATABASE_URL, to "+form),
		check.That(err == nil, "postgres.url: not a connection string, expected "+form),
		check.That(directErr == nil, "postgres.direct_url: not a connection string, expected "+form),
		check.Value(c.MaxConns >= 4, "postgres.max_conns", c.MaxConns, "at least 4"),
	)
}

// Warn returns an error if the password may cross the network unencrypted: sslmode is
// prefer by default, which falls back to no encryption.
func (c Config) Warn() error {
	return errors.Join(warn("postgres.url", c.URL), warn("postgres.direct_url", c.DirectURL))
}

func warn(key string, address Secret) error {
	if address == "" {
		return nil
	}

	parsed, err := pgxpool.ParseConfig(string(address))
	if err != nil {
		return nil //nolint:nilerr // Validate reports it
	}

	first := pgconn.FallbackConfig{Host: parsed.ConnConfig.Host, TLSConfig: parsed.ConnConfig.TLSConfig}

	for _, attempt := range append([]*pgconn.FallbackConfig{&first}, parsed.ConnConfig.Fallbacks...) {
		network, _ := pgconn.NetworkAddress(attempt.Host, attempt.Port)
		safe := attempt.TLSConfig != nil || network == "unix"

		if err := check.Encrypted(key, safe, parsed.ConnConfig.Password != "", attempt.Host, "sslmode=verify-full or require"); err != nil {
			return err
		}
	}

	return nil
}

// Secret is a string that is never logged or printed.
type Secret string

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}

	return scrub.Hidden
}

// NewPool returns a pool that connects on first use.
func NewPool(cfg Config) (*pgxpool.Pool, func(), error) {
	poolConfig, err := pgxpool.ParseConfig(string(cfg.URL))
	if err != nil {
		return nil, nil, errors.New("postgres.url: not a connection string")
	}

	poolConfig.MaxConns = cfg.MaxConns
	poolConfig.AfterConnect = registerTypes

	if cfg.DirectURL != "" {
		direct, err := pgxpool.ParseConfig(string(cfg.DirectURL)) // removes the pool settings
		if err != nil {
			return nil, nil, errors.New("postgres.direct_url: not a connection string")
		}

		shareSessions(poolConfig, direct.ConnConfig)
	}

	newSession(poolConfig)

	pool, err := pgxpool.NewWithConfig(context.Background(), poolConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("creating pool: %w", err)
	}

	return pool, pool.Close, nil
}

// pingTimeout bounds one attempt of Wait.
const pingTimeout = 5 * time.Second

// Wait blocks until the database responds and accepts writes. It returns an error when
// ctx ends, and a SetupError immediately. It logs when it starts and stops waiting, and
// calls failed with each attempt's error.
func Wait(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger, failed func(error)) error {
	err := backoff.Retry(ctx, logger, Dependency, func() error {
		pingCtx, cancel := context.WithTimeout(ctx, pingTimeout)
		defer cancel()

		err := pool.Ping(pingCtx)
		if err != nil {
			failed(err)
		}

		if setup, ok := errors.AsType[*SetupError](err); ok {
			return backoff.Final(setup)
		}

		return err
	})
	if err != nil {
		return fmt.Errorf("waiting for postgres: %w", err)
	}

	return nil
}

// Beginner begins transactions: a pool or a connection.
type Beginner interface {
	BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
}

// Querier runs queries: a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Execer runs statements: a pool, a connection or a transaction.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Batcher sends statements in one round trip: a pool, a connection or a transaction.
type Batcher interface {
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// rollbackTimeout bounds a rollback. Rollbacks do not use the caller's context,
// because pgx closes the connection if that context has expired.
const rollbackTimeout = 5 * time.Second

// InTx runs fn in a READ COMMITTED transaction and commits if fn returns nil. If the
// commit itself fails, the transaction may still have taken effect: the caller must
// be able to run it again.
func InTx(ctx context.Context, db Beginner, fn func(tx pgx.Tx) error) (err error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", err)
	}

	defer rollback(ctx, tx) // after a panic it keeps the connection usable

	if err := fn(tx); err != nil {
		return err
	}

	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("committing transaction: %w", err)
	}

	return nil
}
