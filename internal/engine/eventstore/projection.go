package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Projection keeps tables that are derived from events.
type Projection struct {
	// Name identifies it and never changes. Like the names of the tables it is
	// a plain SQL identifier.
	Name string
	// Tables are those that it keeps, in schema public. Nobody else writes to
	// them.
	Tables []string
	// Apply applies events, in order, in tx. It names its tables without a
	// schema: a rebuild puts others of the same shape in their place.
	Apply func(ctx context.Context, tx pgx.Tx, events []Event) error
}

// Pace of projections.
const (
	followBatch  = 1000 // positions a transaction while following
	rebuildBatch = 5000 // positions a transaction while rebuilding
	followPoll   = 200 * time.Millisecond
	maxTrouble   = 5 * time.Second
)

// Projector keeps projections up to date. Several may run: a row lock lets one
// at a time apply.
type Projector struct {
	pool        *pgxpool.Pool
	projections []Projection
	logger      *slog.Logger
}

// NewProjector returns a projector that does nothing until Run.
func NewProjector(pool *pgxpool.Pool, projections []Projection, logger *slog.Logger) *Projector {
	return &Projector{pool: pool, projections: projections, logger: logger.With(slog.String("component", "projections"))}
}

// Run follows the events until ctx ends. Trouble is logged once and tried
// again for ever: a projection skips nothing.
func (p *Projector) Run(ctx context.Context) {
	wait := followPoll
	failing := false

	for ctx.Err() == nil {
		more, err := p.follow(ctx)

		switch {
		case err != nil && ctx.Err() == nil:
			if !failing {
				p.logger.Warn("projections stand still, trying again until they go on", slog.Any("error", err))
			}

			failing, wait = true, min(2*wait, maxTrouble)
		case failing:
			p.logger.Info("projections go on")

			failing, wait = false, followPoll
		}

		if !more {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
}

// follow takes each projection one batch further. more is true when one of
// them has not reached the horizon.
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

// behind makes the rows of new projections and reports whether any has
// something to do, so that an idle service takes no transaction ids.
func (p *Projector) behind(ctx context.Context) (behind bool, err error) {
	err = p.pool.QueryRow(ctx, `
		SELECT count(*) < $2 OR coalesce(bool_or(position < (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_position_seq)), true)
		FROM projections WHERE name = ANY($1)`, p.names(), len(p.projections)).Scan(&behind)
	if err != nil {
		return false, fmt.Errorf("reading projections: %w", err)
	}

	if !behind {
		return false, nil
	}

	_, err = p.pool.Exec(ctx, `INSERT INTO projections (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING`, p.names())
	if err != nil {
		return false, fmt.Errorf("adding projections: %w", err)
	}

	return true, nil
}

func (p *Projector) names() []string {
	names := make([]string, len(p.projections))
	for i, projection := range p.projections {
		names[i] = projection.Name
	}

	return names
}

// step applies one batch in a transaction, with the position. When another
// process is at it, it reports the horizon as reached.
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

		events, next, err := ReadAll(ctx, tx, position, horizon, followBatch)
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

// Status says how far a projection is.
type Status struct {
	Name     string `json:"name"`
	Position int64  `json:"position"`
	// Behind is how many positions are after it, at most as many events.
	Behind    int64      `json:"behind"`
	UpdatedAt time.Time  `json:"updated_at"`
	RebuiltAt *time.Time `json:"rebuilt_at"`
}

// Status returns how far each projection is.
func (p *Projector) Status(ctx context.Context) ([]Status, error) {
	if _, err := p.behind(ctx); err != nil {
		return nil, err
	}

	rows, err := p.pool.Query(ctx, `
		SELECT name, position, greatest(0, (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_position_seq) - position), updated_at, rebuilt_at
		FROM projections WHERE name = ANY($1) ORDER BY name`, p.names())
	if err != nil {
		return nil, fmt.Errorf("reading projections: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Status])
	if err != nil {
		return nil, fmt.Errorf("reading projections: %w", err)
	}

	return list, nil
}

// rebuildLock is the advisory lock of rebuilds: "mlrb" in ASCII.
const rebuildLock = 0x6d6c7262

// Rebuild makes the tables of a projection anew from the first event on, in a
// schema aside, while the old ones go on being read and written; then it puts
// them in their place in one transaction. progress is called after each batch
// with positions done and in all.
func (p *Projector) Rebuild(ctx context.Context, name string, progress func(done, total int64)) error {
	for _, projection := range p.projections {
		if projection.Name == name {
			if err := p.rebuild(ctx, projection, progress); err != nil {
				return fmt.Errorf("rebuilding projection %s: %w", name, err)
			}

			return nil
		}
	}

	return &event.Error{Kind: event.NotFound, What: "projection", Name: name, Known: p.names()}
}

func (p *Projector) rebuild(ctx context.Context, projection Projection, progress func(done, total int64)) error {
	if _, err := p.behind(ctx); err != nil { // the row is there from now on
		return err
	}

	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()

	var free bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, hashtext($2))`, rebuildLock, projection.Name).Scan(&free); err != nil {
		return err
	}

	if !free {
		return errors.New("another rebuild is under way")
	}

	// The connection goes back to the pool: the lock must not go with it.
	defer func() {
		_, _ = conn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1, hashtext($2))`, rebuildLock, projection.Name)
	}()

	r := rebuilding{Projection: projection, schema: "rebuild_" + projection.Name}
	if err := r.prepare(ctx, p.pool); err != nil {
		return err
	}

	for {
		horizon, err := Horizon(ctx, p.pool)
		if err != nil {
			return err
		}

		if horizon-r.position <= rebuildBatch {
			if err := r.finish(ctx, p.pool, horizon); err != nil {
				return err
			}

			progress(r.position, r.position)

			return nil
		}

		for r.position < horizon {
			if err := postgres.InTx(ctx, p.pool, func(tx pgx.Tx) error { return r.apply(ctx, tx, horizon) }); err != nil {
				return err
			}

			progress(r.position, horizon)
		}
	}
}

// rebuilding is the state of a rebuild.
type rebuilding struct {
	Projection

	schema   string
	position int64
}

func (r *rebuilding) prepare(ctx context.Context, pool *pgxpool.Pool) error {
	statements := []string{`DROP SCHEMA IF EXISTS ` + r.schema + ` CASCADE`, `CREATE SCHEMA ` + r.schema}
	for _, table := range r.Tables {
		statements = append(statements, `CREATE TABLE `+r.schema+`.`+table+` (LIKE public.`+table+` INCLUDING ALL)`)
	}

	return postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
		for _, table := range r.Tables {
			more, err := furnish(ctx, tx, `public.`+table, r.schema+`.`+table)
			if err != nil {
				return err
			}

			statements = append(statements, more...)
		}

		return run(ctx, tx, statements)
	})
}

// furnish returns the statements that give a table what LIKE leaves out: the
// storage parameters, the comment and the privileges of another.
func furnish(ctx context.Context, tx pgx.Tx, from, to string) ([]string, error) {
	rows, err := tx.Query(ctx, `
		SELECT format('ALTER TABLE %s SET (%s)', $2::text, array_to_string(reloptions, ', '))
		FROM pg_class WHERE oid = $1::text::regclass AND reloptions IS NOT NULL
		UNION ALL
		SELECT format('COMMENT ON TABLE %s IS %L', $2, comment)
		FROM obj_description($1::text::regclass, 'pg_class') AS comment WHERE comment IS NOT NULL
		UNION ALL
		SELECT format('GRANT %s ON %s TO %s', privilege_type, $2, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
		FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = $1::text::regclass AND grantee <> relowner`, from, to)
	if err != nil {
		return nil, fmt.Errorf("reading the properties of table %s: %w", from, err)
	}

	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the properties of table %s: %w", from, err)
	}

	return statements, nil
}

// apply takes the tables aside one batch further, in tx.
func (r *rebuilding) apply(ctx context.Context, tx pgx.Tx, horizon int64) error {
	events, next, err := ReadAll(ctx, tx, r.position, horizon, rebuildBatch)
	if err != nil {
		return err
	}

	// It takes effect until the transaction ends.
	if _, err := tx.Exec(ctx, `SET LOCAL search_path = `+r.schema+`, public`); err != nil {
		return err
	}

	if len(events) > 0 {
		if err := r.Apply(ctx, tx, events); err != nil {
			return err
		}
	}

	r.position = next

	return nil
}

// finish holds the projection, catches up with it and swaps the tables. Both
// positions are behind a horizon, so the higher one misses nothing.
func (r *rebuilding) finish(ctx context.Context, pool *pgxpool.Pool, horizon int64) error {
	return postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
		var live int64

		err := tx.QueryRow(ctx, `SELECT position FROM projections WHERE name = $1 FOR UPDATE`, r.Name).Scan(&live)
		if err != nil {
			return err
		}

		for target := max(live, horizon); r.position < target; {
			if err := r.apply(ctx, tx, target); err != nil {
				return err
			}
		}

		var statements []string
		for _, table := range r.Tables {
			statements = append(statements, `DROP TABLE public.`+table, `ALTER TABLE `+r.schema+`.`+table+` SET SCHEMA public`)
		}

		if err := run(ctx, tx, append(statements, `DROP SCHEMA `+r.schema)); err != nil {
			return err
		}

		_, err = tx.Exec(ctx, `UPDATE projections SET position = $2, updated_at = now(), rebuilt_at = now() WHERE name = $1`, r.Name, r.position)

		return err
	})
}

func run(ctx context.Context, tx pgx.Tx, statements []string) error {
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%w (in: %s)", err, sql)
		}
	}

	return nil
}
