package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// horizonPoll is how often Horizon looks whether older transactions have ended.
const horizonPoll = 2 * time.Millisecond

// Horizon returns a position up to which every event is visible that ever will
// be. Positions are given before their transactions commit, so a reader that
// went by the highest position it sees would skip those that commit late.
//
// It takes the highest position given, then a transaction id, and waits until
// all transactions with lower ids have ended: whoever was given a position by
// then had its id before (see Append). It waits as long as the oldest writing
// transaction of the server runs, and must not be called inside one.
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
		return 0, fmt.Errorf("taking a transaction id: %w", err)
	}

	for {
		err := pool.QueryRow(ctx, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > $1`, mark).Scan(&done)
		if err != nil {
			return 0, fmt.Errorf("waiting for older transactions: %w", err)
		}

		if done {
			return high, nil
		}

		select {
		case <-time.After(horizonPoll):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// ReadAll returns the events with positions above after, up to the horizon and
// at most limit positions on, in order; and the position to go on from, which
// is the horizon when there is no more.
func ReadAll(ctx context.Context, db postgres.Querier, after, horizon int64, limit int) (events []Event, next int64, err error) {
	next = min(horizon, after+int64(limit))
	if next <= after {
		return nil, after, nil
	}

	rows, err := db.Query(ctx, `
		SELECT `+columns+` FROM events e WHERE position > $1 AND position <= $2 ORDER BY position`, after, next)
	if err != nil {
		return nil, after, fmt.Errorf("reading events after position %d: %w", after, err)
	}

	events, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	if err != nil {
		return nil, after, fmt.Errorf("reading events after position %d: %w", after, err)
	}

	return events, next, nil
}
