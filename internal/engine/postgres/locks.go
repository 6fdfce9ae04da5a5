package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Lock is a class of advisory locks. All locks that Millrace takes are listed here.
// The numbers are ASCII, so that they can be recognised in pg_locks.
type Lock int32

// Locks.
const (
	// LockMigrations serializes migrations: "mlmg".
	LockMigrations Lock = 0x6d6c6d67
	// LockPartitions serializes creating and dropping partitions: "mlpt". The name is the
	// table's name.
	LockPartitions Lock = 0x6d6c7074
	// LockUpkeep serializes upkeep: "mlup".
	LockUpkeep Lock = 0x6d6c7570
	// LockRebuild serializes rebuilds of a projection: "mlrb". The name is the
	// projection's name.
	LockRebuild Lock = 0x6d6c7262
	// LockFailed serializes operator actions on failed messages: "mlfa".
	LockFailed Lock = 0x6d6c6661
	// LockShard is a relay's ownership of an outbox shard: "mlrc". The second key is
	// the shard number.
	LockShard Lock = 0x6d6c7263
	// LockRelays is held, shared, by all relays: "mlrm".
	LockRelays Lock = 0x6d6c726d
)

// ErrLocked reports that another session holds the lock.
var ErrLocked = errors.New("another process holds the lock")

// unlockTimeout bounds releasing a lock, which must not depend on the caller's
// context.
const unlockTimeout = 5 * time.Second

// TryLock runs fn while holding an advisory lock. It returns ErrLocked immediately if
// another process holds the lock. The lock uses a connection of its own and no
// transaction, so projections do not wait for it.
func TryLock(ctx context.Context, pool *pgxpool.Pool, lock Lock, name string, fn func() error) error {
	conn, err := Connect(ctx, pool, "millrace lock", nil)
	if err != nil {
		return fmt.Errorf("connecting for lock: %w", err)
	}

	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
		defer cancel()

		_ = conn.Close(closeCtx) // the server then releases the lock
	}()

	var free bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, hashtext($2))`, lock, name).Scan(&free); err != nil {
		return fmt.Errorf("taking lock: %w", err)
	}

	if !free {
		return ErrLocked
	}

	defer func() {
		unlockCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
		defer cancel()

		// Unlock first, so that the lock is already free when TryLock returns.
		_, _ = conn.Exec(unlockCtx, `SELECT pg_advisory_unlock($1, hashtext($2))`, lock, name)
	}()

	return fn()
}

// LockInTx waits for an advisory lock that is released at the end of the transaction.
func LockInTx(ctx context.Context, tx pgx.Tx, lock Lock, name string) error {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, hashtext($2))`, lock, name); err != nil {
		return fmt.Errorf("waiting for lock: %w", err)
	}

	return nil
}
