package fulfilment

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/order"
)

// Config says how long an order waits for its payment.
type Config struct {
	// PaymentTimeout is how old an order may be and not be paid; then it
	// expires. 0 is for ever.
	PaymentTimeout time.Duration `koanf:"payment_timeout"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{PaymentTimeout: 15 * time.Minute} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	if c.PaymentTimeout != 0 && c.PaymentTimeout < time.Second {
		return fmt.Errorf("fulfilment.payment_timeout: is %s, expected at least 1s, or 0 for ever", c.PaymentTimeout)
	}

	return nil
}

// Pace of the sweep.
const (
	maxSweepEvery = 5 * time.Second
	sweepPage     = 5000 // orders looked at in a transaction
	// lateness is how long after it began a transaction that creates orders may
	// commit. Orders younger than that are looked at again.
	lateness = 5 * time.Minute
)

// Sweeper finds orders that are still not paid when their time is over, and
// asks for their end. One delayed message an order would say the same, at the
// cost of a message for each of the many that are paid.
type Sweeper struct {
	cfg    Config
	pool   *pgxpool.Pool
	append event.Append
	logger *slog.Logger
}

// NewSweeper returns a sweeper that does nothing until Run. Several may run: a
// row lock lets one at a time sweep.
func NewSweeper(cfg Config, pool *pgxpool.Pool, appendEvents event.Append, logger *slog.Logger) *Sweeper {
	return &Sweeper{cfg: cfg, pool: pool, append: appendEvents, logger: logger.With(slog.String("component", "expiry"))}
}

// Run sweeps until ctx ends. Trouble is logged once and tried again for ever.
func (s *Sweeper) Run(ctx context.Context) {
	if s.cfg.PaymentTimeout == 0 {
		return
	}

	ticker := time.NewTicker(min(s.cfg.PaymentTimeout/4, maxSweepEvery))
	defer ticker.Stop()

	failing := false

	for {
		err := s.Sweep(ctx)

		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			s.logger.Warn("orders do not expire, trying again until they do", slog.Any("error", err))
		case err == nil && failing:
			s.logger.Info("orders expire again")
		}

		failing = err != nil

		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sweepTimeout bounds a page of the sweep.
const sweepTimeout = 20 * time.Second

// Sweep looks once at all orders whose time is over. Each that is open gets
// one message, however often it is seen: its id depends on the order alone.
func (s *Sweeper) Sweep(ctx context.Context) error {
	var from *place

	for {
		last, err := s.page(ctx, from)
		if err != nil || last == nil {
			return err
		}

		from = last
	}
}

// place is a place among all orders.
type place struct {
	at time.Time
	id string
}

// page looks at the orders after from, and without from at those after the
// cursor. It returns the place to go on from, or nil at the end or when another
// replica sweeps.
func (s *Sweeper) page(ctx context.Context, from *place) (last *place, err error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()

	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		cursor, due, err := s.lockCursor(ctx, tx)
		if err != nil || cursor == nil {
			return err
		}

		if from == nil {
			// With a long time-out every transaction has ended by now.
			from = &place{at: cursor.at.Add(-max(0, lateness-s.cfg.PaymentTimeout))}
		}

		var open []event.Outgoing

		reached := place{at: due}
		if open, last, err = s.look(ctx, tx, *from, due); err != nil {
			return err
		}

		if last != nil {
			reached = *last
		}

		if err := s.append(ctx, tx, open); err != nil {
			return err
		}

		_, err = tx.Exec(ctx, `UPDATE expiry_cursor SET at = $1, order_id = $2 WHERE (at, order_id) < ($1, $2)`, reached.at, reached.id)

		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for orders to expire: %w", err)
	}

	return last, nil
}

// lockCursor returns the cursor, or nil when another replica has it, and the
// time until which orders are due.
func (s *Sweeper) lockCursor(ctx context.Context, tx pgx.Tx) (cursor *place, due time.Time, err error) {
	rows, err := tx.Query(ctx, `
		SELECT at, order_id, clock_timestamp() - $1 * interval '1 second' FROM expiry_cursor
		FOR NO KEY UPDATE SKIP LOCKED`, s.cfg.PaymentTimeout.Seconds())
	if err != nil {
		return nil, due, err
	}

	var found place

	tag, err := pgx.ForEachRow(rows, []any{&found.at, &found.id, &due}, func() error { return nil })
	if err != nil || tag.RowsAffected() == 0 {
		return nil, due, err
	}

	return &found, due, nil
}

// look returns messages for the open orders of a page, and the last place of a
// page that is full.
func (s *Sweeper) look(ctx context.Context, tx pgx.Tx, from place, due time.Time) (open []event.Outgoing, last *place, err error) {
	rows, err := tx.Query(ctx, `
		SELECT created_at, id, status FROM orders
		WHERE created_at >= $1 AND (created_at, id) > ($1, $2) AND created_at <= $3
		ORDER BY created_at, id LIMIT $4`, from.at, from.id, due, sweepPage)
	if err != nil {
		return nil, nil, err
	}

	var (
		seen   place
		status order.Status
	)

	tag, err := pgx.ForEachRow(rows, []any{&seen.at, &seen.id, &status}, func() error {
		if !status.Terminal() && status != order.StatusPaid {
			id := event.ForeignID(TopicExpiryDue, seen.id)
			open = append(open, event.Outgoing{Meta: event.Meta{ID: id, Correlation: id}, Payload: ExpiryDue{OrderID: seen.id}})
		}

		return nil
	})
	if err != nil {
		return nil, nil, err
	}

	if tag.RowsAffected() == sweepPage {
		last = &seen
	}

	return open, last, nil
}
