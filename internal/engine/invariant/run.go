package invariant

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

const (
	closeTimeout = 2 * time.Second
	// confirmAfter is the delay between the snapshot and the confirmation of
	// violations.
	confirmAfter = 3 * time.Second
	// maxListed caps the violations of a check kept in memory.
	maxListed = 10_000
)

// Run runs all checks in one snapshot. It blocks nothing: its only lock is ACCESS
// SHARE, and it needs no transaction ID, so event readers do not wait for it. Like
// any transaction it delays vacuum.
//
// Violations are not an error; see Report.Err. An unknown check is an Unknown error.
func (a *Auditor) Run(ctx context.Context, options Options) (Report, error) {
	sources, err := a.selected(options.Only)
	if err != nil {
		return Report{}, err
	}

	// Temporary tables live as long as the session.
	conn, err := postgres.Connect(ctx, a.pool, "millrace audit", nil)
	if err != nil {
		return Report{}, fmt.Errorf("connecting for the audit: %w", err)
	}

	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()

		_ = conn.Close(closeCtx)
	}()

	started := time.Now()
	r := &run{options: options.withDefaults(), sources: sources, conn: conn, results: map[string]*Result{}}

	for _, step := range []func(context.Context) error{r.prepare, r.snapshot, r.confirm} {
		if err := step(ctx); err != nil {
			return Report{}, err
		}
	}

	return Report{At: r.at, Seconds: time.Since(started).Seconds(), Checks: r.list()}, nil
}

// run is one run of an audit.
type run struct {
	options Options
	sources []Source
	conn    *pgx.Conn
	at      time.Time
	// results holds the results by check name.
	results map[string]*Result
}

// prepare loads records from other systems before the snapshot, so our own data is never
// older than a record.
func (r *run) prepare(ctx context.Context) error {
	for _, s := range r.sources {
		if s.Prepare == nil {
			continue
		}

		r.options.Progress(0, 1, "preparing "+s.Name)

		if err := s.Prepare(ctx, r.conn, r.options); err != nil {
			return err
		}
	}

	return nil
}

// snapshot runs all checks in one transaction.
func (r *run) snapshot(ctx context.Context) error {
	tx, err := r.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("starting the audit: %w", err)
	}

	defer func() {
		rollbackCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()

		_ = tx.Rollback(rollbackCtx)
	}()

	// The lock timeout lets exclusive locks go first, such as those for dropping a
	// partition. This work_mem fits the hashes of a million orders. Sequential scans
	// are on, because an audit reads whole tables. Each statement runs once, so its plan may
	// depend on the values.
	_, err = tx.Exec(ctx, fmt.Sprintf(
		`SET LOCAL statement_timeout = %d; SET LOCAL lock_timeout = '2s'; SET LOCAL work_mem = '96MB';
		SET LOCAL enable_seqscan = on; SET LOCAL plan_cache_mode = auto`,
		r.options.Timeout.Milliseconds()))
	if err != nil {
		return fmt.Errorf("preparing the audit: %w", err)
	}

	if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&r.at); err != nil {
		return fmt.Errorf("reading the time: %w", err)
	}

	for i, s := range r.sources {
		r.options.Progress(i+1, len(r.sources)+1, "checking "+s.Name)

		if err := r.read(ctx, tx, s); err != nil {
			return fmt.Errorf("checking %s: %w", s.Name, migrateHint(err))
		}
	}

	return nil
}

// Postgres error codes for an outdated schema.
const (
	undefinedColumn = "42703"
	undefinedTable  = "42P01"
)

// migrateHint adds the fix to an error about a missing table or column.
func migrateHint(err error) error {
	pgErr, _ := errors.AsType[*pgconn.PgError](err)
	if pgErr != nil && (pgErr.Code == undefinedTable || pgErr.Code == undefinedColumn) {
		return fmt.Errorf("%w: run `millrace migrate up`", err)
	}

	return err
}

// read runs all checks of a source in one pass.
func (r *run) read(ctx context.Context, tx pgx.Tx, s Source) error {
	args := pgx.NamedArgs{"older": r.options.Older, "retention": r.options.Retention, "ledger": r.options.Ledger}

	var examined int64
	if err := tx.QueryRow(ctx, s.Count, args).Scan(&examined); err != nil {
		return err
	}

	var (
		faults, anyFault []string
		results          []*Result

		id      string
		details = make([]*string, len(s.Checks))
		targets = []any{&id}
	)

	for i, c := range s.Checks {
		faults = append(faults, fmt.Sprintf("(%s) AS fault%d", c.Fault, i))
		anyFault = append(anyFault, fmt.Sprintf("fault%d IS NOT NULL", i))
		targets = append(targets, &details[i])
		results = append(results, &Result{Name: c.Name, Means: c.Means, Advice: c.Advice, What: s.Name, Examined: examined})
		r.results[c.Name] = results[i]
	}

	rows, err := tx.Query(ctx, fmt.Sprintf(`SELECT * FROM (SELECT id, %s FROM (%s) AS r) AS f WHERE %s`,
		strings.Join(faults, ", "), s.Rows, strings.Join(anyFault, " OR ")), args)
	if err != nil {
		return err
	}

	_, err = pgx.ForEachRow(rows, targets, func() error {
		for i, detail := range details {
			if detail != nil {
				results[i].add(Violation{ID: id, Detail: *detail})
			}
		}

		return nil
	})

	return err
}

func (r *Result) add(v Violation) {
	r.Violations++

	if len(r.First) < maxListed {
		r.First = append(r.First, v)
	}
}

// confirm rechecks violations a moment later, outside the snapshot: those that are
// gone were work in progress.
func (r *run) confirm(ctx context.Context) error {
	for _, s := range r.sources {
		for _, c := range s.Checks {
			result := r.results[c.Name]
			if c.Confirm == "" || result.Violations == 0 || result.Violations > int64(len(result.First)) {
				continue
			}

			if err := backoff.Sleep(ctx, time.Until(r.at.Add(confirmAfter))); err != nil {
				return err
			}

			ids := postgres.Column(result.First, func(v Violation) string { return v.ID })

			confirmed, err := postgres.Collect(ctx, r.conn, pgx.RowTo[string], c.Confirm, ids)
			if err != nil {
				return fmt.Errorf("confirming %s: %w", c.Name, err)
			}

			slices.Sort(confirmed)

			result.First = slices.DeleteFunc(result.First, func(v Violation) bool {
				_, still := slices.BinarySearch(confirmed, v.ID)

				return !still
			})
			result.Violations = int64(len(result.First))
		}
	}

	return nil
}

// list returns the results in the order of the checks.
func (r *run) list() []Result {
	var list []Result

	for _, s := range r.sources {
		for _, c := range s.Checks {
			result := r.results[c.Name]
			slices.SortFunc(result.First, func(a, b Violation) int { return strings.Compare(a.ID, b.ID) })
			result.First = result.First[:min(len(result.First), r.options.Limit)]
			list = append(list, *result)
		}
	}

	return list
}
