package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Lock is a class of advisory locks. Every lock that Millrace takes is listed
// here. The numbers are ASCII, so that they can be recognised in pg_locks.
type Lock int32

// Locks.
const (
	// LockMigrations lets one process at a time migrate: "mlmg".
	LockMigrations Lock = 0x6d6c6d67
	// LockPartitions is held while partitions of a table are made or dropped:
	// "mlpt". The name is that of the table.
	LockPartitions Lock = 0x6d6c7074
	// LockUpkeep lets one process at a time run the upkeep tasks: "mlup".
	LockUpkeep Lock = 0x6d6c7570
	// LockRebuild lets one process at a time rebuild a projection: "mlrb". The
	// name is that of the projection.
	LockRebuild Lock = 0x6d6c7262
	// LockFailed lets one operator at a time act on failed messages: "mlfa".
	LockFailed Lock = 0x6d6c6661
	// LockShard is ownership of a shard of the outbox by a relay: "mlrc". The
	// second key is the shard's number.
	LockShard Lock = 0x6d6c7263
	// LockRelays is held, shared, by every relay: "mlrm".
	LockRelays Lock = 0x6d6c726d
)

// ErrLocked reports that another session holds the lock.
var ErrLocked = errors.New("another process holds the lock")

// unlockTimeout bounds the release of a lock, which must not run on the
// caller's context.
const unlockTimeout = 5 * time.Second

// TryLock runs fn while this process holds an advisory lock, or returns
// ErrLocked at once if another one does. The lock takes a connection of the
// pool, but no transaction: projections do not wait for it.
func TryLock(ctx context.Context, pool *pgxpool.Pool, lock Lock, name string, fn func() error) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting for lock: %w", err)
	}
	defer conn.Release()

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

		if _, err := conn.Exec(unlockCtx, `SELECT pg_advisory_unlock($1, hashtext($2))`, lock, name); err != nil {
			_ = conn.Conn().Close(unlockCtx) // the server then releases the lock
		}
	}()

	return fn()
}

// LockInTx waits for an advisory lock that ends with the transaction.
func LockInTx(ctx context.Context, tx pgx.Tx, lock Lock, name string) error {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, hashtext($2))`, lock, name); err != nil {
		return fmt.Errorf("waiting for lock: %w", err)
	}

	return nil
}
