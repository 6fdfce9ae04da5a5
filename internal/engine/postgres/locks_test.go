package postgres_test

import (
	"context"
	"errors"
	"testing"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestTryLock(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	wanted := errors.New("result of fn")

	err := postgres.TryLock(ctx, pool, postgres.LockUpkeep, "a", func() error {
		if err := postgres.TryLock(ctx, pool, postgres.LockUpkeep, "a", func() error { return nil }); !errors.Is(err, postgres.ErrLocked) {
			t.Errorf("the same lock: got %v", err)
		}

		for _, other := range []struct {
			lock postgres.Lock
			name string
		}{{postgres.LockUpkeep, "b"}, {postgres.LockRebuild, "a"}} {
			if err := postgres.TryLock(ctx, pool, other.lock, other.name, func() error { return nil }); err != nil {
				t.Errorf("lock %x %s: got %v", other.lock, other.name, err)
			}
		}

		cancel() // the lock must still be released

		return wanted
	})
	if !errors.Is(err, wanted) {
		t.Errorf("got %v", err)
	}

	if err := postgres.TryLock(t.Context(), pool, postgres.LockUpkeep, "a", func() error { return nil }); err != nil {
		t.Errorf("the lock is still held: %v", err)
	}
}
