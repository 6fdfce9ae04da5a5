package fulfilment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/order"
)

// Config sets how long an order waits for payment.
type Config struct {
	// PaymentTimeout is how long an order may stay unpaid before it expires. Time
	// during which orders cannot be paid does not count. 0 lets orders wait indefinitely.
	// Defaults to 15m.
	PaymentTimeout time.Duration `koanf:"payment_timeout"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{PaymentTimeout: 15 * time.Minute} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	return check.Value(c.PaymentTimeout == 0 || c.PaymentTimeout >= time.Second, "fulfilment.payment_timeout", c.PaymentTimeout, "at least 1s, or 0 for no limit")
}

const (
	maxSweepInterval = 5 * time.Second
	// sweepLimit is how long a sweep of many pages may take.
	sweepLimit = 10 * time.Minute
	// sweepTimeout bounds the transaction of a page.
	sweepTimeout = 20 * time.Second
	// pageSize is the number of orders that a transaction reads.
	pageSize = 5000
	// maxCommitDelay is the longest time from the start to the commit of a
	// transaction that creates orders. The sweep reads orders younger than this again.
	maxCommitDelay = 5 * time.Minute
)

// Sweeper finds orders that are unpaid after the payment timeout and publishes
// ExpiryDue for each. A delayed message per order would do the same, but would be
// wasted on most orders, which are paid.
type Sweeper struct {
	cfg     Config
	pool    *pgxpool.Pool
	append  event.Append
	stalled event.Stalled
	logger  *slog.Logger
	// Loop tracks whether sweeps succeed.
	Loop *health.Loop
	// why is the last logged reason for stopping the clock, or "" if it is running.
	why string
}

// NewSweeper returns a sweeper that does nothing until Run. Each replica runs
// one; a row lock lets only one sweep at a time.
func NewSweeper(cfg Config, pool *pgxpool.Pool, appendEvents event.Append, stalled event.Stalled, logger *slog.Logger) *Sweeper {
	logger = logger.With(slog.String("component", "expiry"))

	return &Sweeper{
		cfg: cfg, pool: pool, append: appendEvents, stalled: stalled, logger: logger,
		Loop: health.NewLoop("expiry of unpaid orders", health.Degraded, sweepLimit, logger),
	}
}

// interval is the time between sweeps.
func (s *Sweeper) interval() time.Duration { return min(s.cfg.PaymentTimeout/4, maxSweepInterval) }

// Run sweeps until ctx ends. It retries failures indefinitely.
func (s *Sweeper) Run(ctx context.Context) {
	if s.cfg.PaymentTimeout == 0 {
		return
	}

	for s.Loop.Begin(); backoff.Sleep(ctx, s.interval()) == nil; {
		if err := s.Sweep(ctx); ctx.Err() == nil {
			s.Loop.Report(err)
		}
	}
}

// Sweep advances the clock and reads all due orders once. An unpaid order gets one
// message even if it is read several times, because the message's id depends on the
// order alone.
func (s *Sweeper) Sweep(ctx context.Context) error {
	if err := s.tick(ctx); err != nil {
		return err
	}

	var from *position

	for {
		last, err := s.sweepPage(ctx, from)
		if err != nil || last == nil {
			return err
		}

		from = last
	}
}

// position is an order's position by creation time.
type position struct {
	CreatedAt time.Time
	ID        string
}

// sweepPage reads the orders after from, or after the cursor if from is nil. It
// returns the position of the last order, or nil at the end or if another
// replica is sweeping.
func (s *Sweeper) sweepPage(ctx context.Context, from *position) (last *position, err error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()

	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		var cursor, now time.Time

		err := tx.QueryRow(ctx, `SELECT at, clock_timestamp() FROM expiry_cursor FOR NO KEY UPDATE SKIP LOCKED`).Scan(&cursor, &now)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // another replica is sweeping
		}

		if err != nil {
			return err
		}

		if from == nil {
			// No margin is needed if the payment timeout exceeds maxCommitDelay.
			from = &position{CreatedAt: cursor.Add(-max(0, maxCommitDelay-s.cfg.PaymentTimeout))}
		}

		due, err := s.due(ctx, tx, now) // orders created up to due are due
		if err != nil {
			return err
		}

		var unpaid []event.Outgoing
		if unpaid, last, err = readPage(ctx, tx, *from, due); err != nil {
			return err
		}

		if err := s.append(ctx, tx, unpaid); err != nil {
			return err
		}

		if len(unpaid) > 0 {
			crashpoint.At(crashpoint.ExpirySwept)
		}

		reached := position{CreatedAt: due}
		if last != nil {
			reached = *last
		}

		_, err = tx.Exec(ctx, `UPDATE expiry_cursor SET at = $1, order_id = $2 WHERE (at, order_id) < ($1, $2)`, reached.CreatedAt, reached.ID)

		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sweeping unpaid orders: %w", err)
	}

	return last, nil
}

// readPage returns messages for the unpaid orders of a page and, if the page is full,
// its last position.
func readPage(ctx context.Context, tx pgx.Tx, from position, due time.Time) (unpaid []event.Outgoing, last *position, err error) {
	type created struct {
		position

		Status order.Status
	}

	page, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[created], `
		SELECT created_at, id, status FROM orders
		WHERE created_at >= $1 AND (created_at, id) > ($1, $2) AND created_at <= $3
		ORDER BY created_at, id LIMIT $4`, from.CreatedAt, from.ID, due, pageSize)
	if err != nil {
		return nil, nil, err
	}

	for _, o := range page {
		if !o.Status.Terminal() && o.Status != order.StatusPaid {
			id := event.ForeignID(TopicExpiryDue, o.ID)
			unpaid = append(unpaid, event.Outgoing{Meta: event.Meta{ID: id, Correlation: id}, Payload: ExpiryDue{OrderID: o.ID}})
		}
	}

	if len(page) == pageSize {
		last = &page[pageSize-1].position
	}

	return unpaid, last, nil
}
