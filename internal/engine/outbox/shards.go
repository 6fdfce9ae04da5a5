package outbox

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// shards is the set of shards that a relay owns. The server releases them when the
// connection ends.
type shards struct {
	conn *pgx.Conn
	// base is the first lock key: each target has its own 64.
	base int32
	list []int16
	// shared is true if other relays are running.
	shared bool
}

func newShards(conn *pgx.Conn, target string) *shards {
	s := &shards{conn: conn}

	if target != "" {
		h := fnv.New32a()
		_, _ = h.Write([]byte(target))
		s.base = int32(h.Sum32()%(1<<20)+1) * Shards
	}

	return s
}

func (s *shards) has(shard int16) bool {
	return slices.Contains(s.list, shard)
}

// moved is the payload of a notification after which relays balance their shards
// immediately. Without it, they do so at each poll.
const moved = "shards"

// join makes other relays count this one when they compute their share.
func (s *shards) join(ctx context.Context) error {
	if _, err := s.conn.Exec(ctx, `SELECT pg_advisory_lock_shared($1, $2)`, postgres.LockRelays, s.base); err != nil {
		return fmt.Errorf("joining the relays: %w", err)
	}

	return s.notify(ctx)
}

// leave releases all locks.
func (s *shards) leave(ctx context.Context) error {
	if _, err := s.conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`); err != nil {
		return fmt.Errorf("leaving the relays: %w", err)
	}

	return s.notify(ctx)
}

func (s *shards) notify(ctx context.Context) error {
	if _, err := s.conn.Exec(ctx, `SELECT pg_notify($1, $2)`, Channel, moved); err != nil {
		return fmt.Errorf("notifying other relays: %w", err)
	}

	return nil
}

// balance acquires free shards up to this relay's share and releases any surplus. It
// reports whether it released any.
func (s *shards) balance(ctx context.Context) (lost bool, err error) {
	var members int

	err = s.conn.QueryRow(ctx, `
		SELECT count(*) FROM pg_locks
		WHERE locktype = 'advisory' AND classid = $1 AND objid = $2 AND objsubid = 2 AND granted
		  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, postgres.LockRelays, s.base).Scan(&members)
	if err != nil {
		return false, fmt.Errorf("counting relays: %w", err)
	}

	s.shared = members > 1
	share := (Shards + max(members, 1) - 1) / max(members, 1)

	switch {
	case len(s.list) > share:
		return true, s.release(ctx, s.list[share:])
	case len(s.list) < share:
		return false, s.acquire(ctx, share-len(s.list))
	}

	return false, nil
}

func (s *shards) release(ctx context.Context, surplus []int16) error {
	_, err := s.conn.Exec(ctx, `SELECT pg_advisory_unlock($1, $2 + shard) FROM unnest($3::int[]) AS shard`,
		postgres.LockShard, s.base, surplus)
	if err != nil {
		return fmt.Errorf("releasing shards: %w", err)
	}

	s.list = s.list[:len(s.list)-len(surplus)]

	return s.notify(ctx)
}

// acquire acquires up to n free shards.
func (s *shards) acquire(ctx context.Context, n int) error {
	for shard := int16(0); shard < Shards && n > 0; shard++ {
		if s.has(shard) {
			continue
		}

		var got bool
		if err := s.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, $2)`, postgres.LockShard, s.base+int32(shard)).Scan(&got); err != nil {
			return fmt.Errorf("acquiring shard %d: %w", shard, err)
		}

		if got {
			s.list = append(s.list, shard)
			n--
		}
	}

	return nil
}
