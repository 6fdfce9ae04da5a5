package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Projection maintains tables derived from events.
type Projection struct {
	// Name identifies the projection and must never change. It must be a plain SQL
	// identifier, as must the table names.
	Name string
	// Tables lists the projection's tables, all in one schema. Only the projection
	// writes to them.
	Tables []string
	// Streams selects streams by a prefix of their names. Empty selects all.
	Streams string
	// Apply applies events, in order, in tx. It must not qualify its tables with a
	// schema, because a rebuild runs it on copies in another schema.
	Apply func(ctx context.Context, tx pgx.Tx, events []Event) error
}

// Batch sizes and delays.
const (
	followBatch  = 1000 // positions per transaction while following
	rebuildBatch = 5000 // positions per transaction while rebuilding
	followPoll   = 200 * time.Millisecond
	maxPause     = 5 * time.Second // after failures
	followLimit  = time.Minute     // a transaction that stays open holds up all projections
)

// Projector keeps projections up to date. Several processes may run one: a row lock
// ensures that only one at a time applies events.
type Projector struct {
	pool        *pgxpool.Pool
	projections []Projection
	// Loop tracks whether projections make progress.
	Loop *health.Loop
}

// NewProjector returns a projector. Call Run to start it.
func NewProjector(pool *pgxpool.Pool, projections []Projection, logger *slog.Logger) *Projector {
	return &Projector{
		pool: pool, projections: projections,
		Loop: health.NewLoop("projections", health.Degraded, followLimit, logger.With(slog.String("component", "projections"))),
	}
}

// Run follows the events until ctx ends. It retries failures indefinitely, because a
// projection must not skip events.
func (p *Projector) Run(ctx context.Context) {
	wait := followPoll

	for p.Loop.Begin(); ctx.Err() == nil; {
		more, err := p.follow(ctx)
		if ctx.Err() == nil {
			p.Loop.Report(err)
		}

		if err != nil {
			wait = min(2*wait, maxPause)
		} else {
			wait = followPoll
		}

		if !more {
			_ = backoff.Sleep(ctx, wait)
		}
	}
}

// follow applies one batch to each projection. more is true if any projection is
// still below the horizon.
func (p *Projector) follow(ctx context.Context) (more bool, err error) {
	behind, err := p.behind(ctx)
	if err != nil || !behind {
		return false, err
	}

	horizon, err := Horizon(ctx, p.pool)
	if err != nil {
		return false, err
	}

	var errs []error

	for _, projection := range p.projections {
		reached, err := p.step(ctx, projection, horizon)
		more = more || err == nil && reached < horizon
		errs = append(errs, err)
	}

	return more, errors.Join(errs...)
}

// behind inserts the rows of new projections and reports whether any projection has
// events to apply. If none has, follow must not call Horizon, which takes a
// transaction ID.
func (p *Projector) behind(ctx context.Context) (behind bool, err error) {
	err = p.pool.QueryRow(ctx, `
		SELECT count(*) < $2 OR coalesce(bool_or(position < (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_position_seq)), true)
		FROM projections WHERE name = ANY($1)`, p.Names(), len(p.projections)).Scan(&behind)
	if err != nil {
		return false, fmt.Errorf("reading projections: %w", err)
	}

	if !behind {
		return false, nil
	}

	_, err = p.pool.Exec(ctx, `INSERT INTO projections (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING`, p.Names())
	if err != nil {
		return false, fmt.Errorf("adding projections: %w", err)
	}

	return true, nil
}

// Names returns the names of the projections.
func (p *Projector) Names() []string {
	return postgres.Column(p.projections, func(projection Projection) string { return projection.Name })
}

// step applies one batch and stores the new position in one transaction. If another
// process holds the projection, it reports the horizon as reached.
func (p *Projector) step(ctx context.Context, projection Projection, horizon int64) (reached int64, err error) {
	err = postgres.InTx(ctx, p.pool, func(tx pgx.Tx) error {
		var position int64

		err := tx.QueryRow(ctx, `SELECT position FROM projections WHERE name = $1 FOR UPDATE SKIP LOCKED`, projection.Name).Scan(&position)
		if errors.Is(err, pgx.ErrNoRows) {
			reached = horizon

			return nil
		}

		if err != nil {
			return err
		}

		events, next, err := ReadAll(ctx, tx, projection.Streams, position, horizon, followBatch)
		if err != nil {
			return err
		}

		reached = next

		if len(events) > 0 {
			if err := projection.Apply(ctx, tx, events); err != nil {
				return err
			}
		}

		return move(ctx, tx, projection.Name, next)
	})
	if err != nil {
		return 0, fmt.Errorf("projecting %s: %w", projection.Name, err)
	}

	return reached, nil
}

func move(ctx context.Context, tx pgx.Tx, name string, position int64) error {
	_, err := tx.Exec(ctx, `UPDATE projections SET position = $2, updated_at = now() WHERE name = $1 AND position <> $2`, name, position)

	return err
}

// Status is the progress of a projection.
type Status struct {
	Name     string `json:"name"`
	Position int64  `json:"position"`
	// Behind is the number of remaining positions, an upper bound on the number of
	// events.
	Behind    int64      `json:"behind"`
	UpdatedAt time.Time  `json:"updated_at"`
	RebuiltAt *time.Time `json:"rebuilt_at"`
	// Unread is when the oldest unread event was recorded.
	Unread *time.Time `json:"oldest_unread_at,omitempty"`
}

// Lag returns the age of the oldest unread event.
func (s Status) Lag() time.Duration {
	if s.Unread == nil {
		return 0
	}

	return max(time.Since(*s.Unread), 0)
}

// Status returns the progress of each projection.
func (p *Projector) Status(ctx context.Context) ([]Status, error) {
	if _, err := p.behind(ctx); err != nil {
		return nil, err
	}

	list, err := postgres.Collect(ctx, p.pool, pgx.RowToStructByPos[Status], `
		SELECT name, position, greatest(0, (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_position_seq) - position), updated_at, rebuilt_at,
		       (SELECT recorded_at FROM events WHERE events.position > projections.position ORDER BY events.position LIMIT 1)
		FROM projections WHERE name = ANY($1) ORDER BY name`, p.Names())
	if err != nil {
		return nil, fmt.Errorf("reading projections: %w", err)
	}

	return list, nil
}
