package eventstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Rebuild fills new tables of a projection from the first event, in a separate schema,
// and then swaps them with the live ones in one transaction. The live tables stay in
// use until then. After each batch, Rebuild calls progress with the current position
// and the last one.
func (p *Projector) Rebuild(ctx context.Context, name string, progress func(done, total int64)) error {
	for _, projection := range p.projections {
		if projection.Name == name {
			if err := p.rebuild(ctx, projection, progress); err != nil {
				return fmt.Errorf("rebuilding projection %s: %w", name, err)
			}

			return nil
		}
	}

	return event.UnknownName("projection", name, p.Names())
}

func (p *Projector) rebuild(ctx context.Context, projection Projection, progress func(done, total int64)) error {
	if _, err := p.behind(ctx); err != nil { // inserts the row that finish locks
		return err
	}

	err := postgres.TryLock(ctx, p.pool, postgres.LockRebuild, projection.Name, func() error {
		r := &rebuild{Projection: projection, schema: "rebuild_" + projection.Name}

		return r.run(ctx, p.pool, progress)
	})
	if errors.Is(err, postgres.ErrLocked) {
		return errors.New("another process is rebuilding it")
	}

	return err
}

// rebuild is the state of a rebuild.
type rebuild struct {
	Projection

	// live is the schema of the tables in use, and schema is that of the new tables.
	live, schema string
	position     int64
}

func (r *rebuild) run(ctx context.Context, pool *pgxpool.Pool, progress func(done, total int64)) error {
	if err := r.prepare(ctx, pool); err != nil {
		return err
	}

	for {
		horizon, err := Horizon(ctx, pool)
		if err != nil {
			return err
		}

		if horizon-r.position <= rebuildBatch {
			if err := r.finish(ctx, pool, horizon); err != nil {
				return err
			}

			progress(r.position, r.position)

			return nil
		}

		for r.position < horizon {
			if err := postgres.InTx(ctx, pool, func(tx pgx.Tx) error { return r.apply(ctx, tx, horizon) }); err != nil {
				return err
			}

			progress(r.position, horizon)
		}
	}
}

func (r *rebuild) prepare(ctx context.Context, pool *pgxpool.Pool) error {
	for _, table := range r.Tables {
		err := postgres.CheckOwner(ctx, pool, table)
		if other, ok := errors.AsType[*postgres.OwnerError](err); ok {
			return fmt.Errorf("%w: run the command as %s", other, other.Owner)
		} else if err != nil {
			return err
		}

		if err := pool.QueryRow(ctx, `SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = $1::text::regclass`, table).Scan(&r.live); err != nil {
			return fmt.Errorf("finding the schema of table %s: %w", table, err)
		}
	}

	statements := []string{`DROP SCHEMA IF EXISTS ` + r.schema + ` CASCADE`, `CREATE SCHEMA ` + r.schema}
	for _, table := range r.Tables {
		statements = append(statements, `CREATE TABLE `+r.schema+`.`+table+` (LIKE `+r.live+`.`+table+` INCLUDING ALL)`)
	}

	return postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
		for _, table := range r.Tables {
			more, err := copyProperties(ctx, tx, r.live+`.`+table, r.schema+`.`+table)
			if err != nil {
				return err
			}

			statements = append(statements, more...)
		}

		return execAll(ctx, tx, statements)
	})
}

// copyProperties returns statements that copy what LIKE omits: storage parameters,
// the comment and privileges.
func copyProperties(ctx context.Context, tx pgx.Tx, from, to string) ([]string, error) {
	statements, err := postgres.Collect(ctx, tx, pgx.RowTo[string], `
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

	return statements, nil
}

// apply applies one batch to the new tables, in tx.
func (r *rebuild) apply(ctx context.Context, tx pgx.Tx, horizon int64) error {
	events, next, err := ReadAll(ctx, tx, r.Streams, r.position, horizon, rebuildBatch)
	if err != nil {
		return err
	}

	if _, err := tx.Exec(ctx, `SET LOCAL search_path = `+r.schema+`, `+r.live); err != nil {
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

// finish locks the projection, catches up with it and swaps the tables. Neither
// position is past a horizon, so no event below the higher position can be missing.
func (r *rebuild) finish(ctx context.Context, pool *pgxpool.Pool, horizon int64) error {
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
			statements = append(statements, `DROP TABLE `+r.live+`.`+table, `ALTER TABLE `+r.schema+`.`+table+` SET SCHEMA `+r.live)
		}

		if err := execAll(ctx, tx, append(statements, `DROP SCHEMA `+r.schema)); err != nil {
			return err
		}

		_, err = tx.Exec(ctx, `UPDATE projections SET position = $2, updated_at = now(), rebuilt_at = now() WHERE name = $1`, r.Name, r.position)

		return err
	})
}

func execAll(ctx context.Context, tx pgx.Tx, statements []string) error {
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%w (in: %s)", err, sql)
		}
	}

	return nil
}
