package fulfilment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// This file implements the clock for orders that are waiting for payment. The clock is
// stopped while orders cannot be paid: a consumer of their payments is paused or waits
// for a dependency, its broker is unavailable, or no service is running. The periods
// during which it was stopped are stored, so that replicas agree and a restart changes
// nothing.

// paying lists the topics whose messages must be processed for an order to be paid.
var paying = []string{TopicPaymentRequested, payment.TopicReported}

// stall is a period during which the clock was stopped.
type stall struct{ Began, Ended time.Time }

// missedTicks is the number of ticks that may be missing before the clock counts as
// stalled: no service was running, or Postgres was unavailable.
const missedTicks = 3

// tick records whether the clock is stopped. The current state applies to the whole
// time since the previous tick. Every replica ticks. A stall that one replica saw in the
// last few ticks counts for all, because not every replica tries every dependency.
func (s *Sweeper) tick(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()

	why := s.stalled(paying...)

	err := postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		var (
			now              time.Time
			ticked, reported *time.Time
		)

		err := tx.QueryRow(ctx, `SELECT clock_timestamp(), ticked_at, stalled_at FROM expiry_cursor FOR NO KEY UPDATE SKIP LOCKED`).
			Scan(&now, &ticked, &reported)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // another replica is ticking or sweeping
		}

		if err != nil {
			return err
		}

		tolerance := missedTicks * s.interval()
		missed := ticked != nil && now.Sub(*ticked) > tolerance
		elsewhere := reported != nil && now.Sub(*reported) <= tolerance

		if why != "" || missed || elsewhere {
			if ticked == nil {
				ticked = &now
			}

			if err := extend(ctx, tx, stall{Began: *ticked, Ended: now}); err != nil {
				return err
			}
		}

		// Orders before the cursor are done, so stalls before it are no longer needed.
		_, err = tx.Exec(ctx, `
			DELETE FROM payment_stalls WHERE ended_at + $1 * interval '1 second' < (SELECT at FROM expiry_cursor)`, s.cfg.PaymentTimeout.Seconds())
		if err != nil {
			return err
		}

		_, err = tx.Exec(ctx, `UPDATE expiry_cursor SET ticked_at = $1, stalled_at = CASE WHEN $2 THEN $1 ELSE stalled_at END`, now, why != "")

		return err
	})
	if err != nil {
		return fmt.Errorf("advancing the clock of unpaid orders: %w", err)
	}

	s.report(why)

	return nil
}

// extend adds a stall, or extends the latest one if it ended when this one began.
func extend(ctx context.Context, tx pgx.Tx, now stall) error {
	tag, err := tx.Exec(ctx, `UPDATE payment_stalls SET ended_at = $2 WHERE ended_at >= $1`, now.Began, now.Ended)
	if err != nil || tag.RowsAffected() > 0 {
		return err
	}

	_, err = tx.Exec(ctx, `INSERT INTO payment_stalls (began_at, ended_at) VALUES ($1, $2)`, now.Began, now.Ended)

	return err
}

// report logs when the clock stops and starts.
func (s *Sweeper) report(why string) {
	switch {
	case why != "" && s.why == "":
		s.logger.Warn("the payment timeout for unpaid orders is suspended", slog.String("why", why))
	case why == "" && s.why != "":
		s.logger.Info("the payment timeout for unpaid orders has resumed")
	}

	s.why = why
}

// dueAt returns the creation time up to which orders are due now: the clock has run
// for timeout since then. After a stall the clock stays stopped for as long again,
// but at most for timeout, so that the backlog is served first. The latest stall
// comes first in stalls.
func dueAt(now time.Time, timeout time.Duration, stalls []stall) time.Time {
	at, left := now, timeout

	for _, s := range stalls {
		ended := s.Ended.Add(min(s.Ended.Sub(s.Began), timeout))

		if ran := at.Sub(ended); ran >= left {
			break
		} else if ran > 0 {
			left -= ran
		}

		if s.Began.Before(at) {
			at = s.Began
		}
	}

	return at.Add(-left)
}

// due reads the stalls and returns the creation time up to which orders are due.
func (s *Sweeper) due(ctx context.Context, tx pgx.Tx, now time.Time) (time.Time, error) {
	stalls, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[stall],
		`SELECT began_at, ended_at FROM payment_stalls ORDER BY began_at DESC`)
	if err != nil {
		return time.Time{}, err
	}

	return dueAt(now, s.cfg.PaymentTimeout, stalls), nil
}

// Affected returns the effect on orders of not processing the messages on topic,
// or "".
func (s *Sweeper) Affected(ctx context.Context, topic string) (string, error) {
	if s.cfg.PaymentTimeout == 0 || !slices.Contains(paying, topic) {
		return "", nil
	}

	var waiting int64

	err := s.pool.QueryRow(ctx, `
		SELECT count(*) FROM orders WHERE status = 'inventory_reserved' AND created_at > (SELECT at FROM expiry_cursor)`).Scan(&waiting)
	if err != nil {
		return "", fmt.Errorf("counting unpaid orders: %w", err)
	}

	return fmt.Sprintf("%s payment; the payment timeout (%s) is suspended, also for new orders",
		event.Plural(waiting, "order is waiting for", "orders are waiting for"), s.cfg.PaymentTimeout), nil
}
