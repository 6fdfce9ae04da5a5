package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Horizon checks whether older transactions have ended after minHorizonPoll, and then at
// growing intervals: they may wait for locks.
const (
	minHorizonPoll = 2 * time.Millisecond
	maxHorizonPoll = 64 * time.Millisecond
)

// Horizon returns a position below which no further event can appear. Positions are
// assigned before their transactions commit, so a reader that relied on the highest
// visible position would skip events that commit late.
//
// It reads the highest assigned position, gets a transaction ID, and waits until all
// transactions with lower IDs have ended: a transaction gets its ID before its first
// position (see Append). The wait lasts as long as the oldest writing transaction on
// the server, so do not call Horizon inside one.
func Horizon(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	var (
		high int64
		mark uint64
		done bool
	)

	err := pool.QueryRow(ctx, `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_position_seq`).Scan(&high)
	if err != nil {
		return 0, fmt.Errorf("reading the last position: %w", err)
	}

	if err := pool.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&mark); err != nil {
		return 0, fmt.Errorf("getting a transaction ID: %w", err)
	}

	for wait := minHorizonPoll; ; wait = min(2*wait, maxHorizonPoll) {
		err := pool.QueryRow(ctx, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > $1`, mark).Scan(&done)
		if err != nil {
			return 0, fmt.Errorf("waiting for older transactions: %w", err)
		}

		if done {
			return high, nil
		}

		if err := backoff.Sleep(ctx, wait); err != nil {
			return 0, err
		}
	}
}

// ReadAll returns, in order, the events of the streams whose names begin with prefix.
// It reads at most limit positions above after, up to the horizon. It also returns the
// position to continue from, which is the horizon once no events are left.
func ReadAll(ctx context.Context, db postgres.Querier, prefix string, after, horizon int64, limit int) (events []Event, next int64, err error) {
	next = min(horizon, after+int64(limit))
	if next <= after {
		return nil, after, nil
	}

	// No index covers left(stream), so Postgres uses the index on positions.
	events, err = postgres.Collect(ctx, db, pgx.RowToStructByPos[Event], `
		SELECT `+columns+` FROM events e
		WHERE position > $1 AND position <= $2 AND left(stream, length($3)) = $3 ORDER BY position`, after, next, prefix)
	if err != nil {
		return nil, after, fmt.Errorf("reading events after position %d: %w", after, err)
	}

	return events, next, nil
}
