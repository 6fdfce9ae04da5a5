// Package audit checks, on a live database, what must be true of it whatever
// happened: the invariants that no constraint can hold because they are about
// several tables, about time, or about another system. It finds, names and, on
// request and where there is one safe answer, mends. It is no monitoring: it
// reads whole tables.
package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Options say what to check and how much to tell.
type Options struct {
	// Only names the checks to run; all if it is empty.
	Only []string
	// Limit is how many violations of a check are listed; all are counted.
	Limit int
	// Older is how long something may be on its way before it counts as stuck.
	Older time.Duration
	// Retention is that of the inbox: nothing is known of what is older.
	Retention time.Duration
	// Ledger is how far back the payment gateway's record is read.
	Ledger time.Duration
	// Timeout bounds each statement.
	Timeout time.Duration
	// Progress is called before each step, if it is set.
	Progress func(step, steps int, what string)
}

func (o Options) orDefaults() Options {
	if o.Limit <= 0 {
		o.Limit = 20
	}

	if o.Older <= 0 {
		o.Older = 15 * time.Minute
	}

	if o.Retention <= 0 {
		o.Retention = 7 * 24 * time.Hour
	}

	if o.Ledger <= 0 {
		o.Ledger = 30 * 24 * time.Hour
	}

	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Minute
	}

	if o.Progress == nil {
		o.Progress = func(int, int, string) {}
	}

	return o
}

// Violation is one thing that is not as it must be.
type Violation struct {
	// ID names it: an order, a product, a stream, a row.
	ID string `json:"id"`
	// Detail says what is wrong.
	Detail string `json:"detail"`
}

// Result is the outcome of one check.
type Result struct {
	Name string `json:"name"`
	// Means is the invariant.
	Means string `json:"means"`
	// Examined is how many of What were looked at.
	Examined   int64  `json:"examined"`
	What       string `json:"what"`
	Violations int64  `json:"violations"`
	// First are the first of them.
	First []Violation `json:"first,omitempty"`
	// Advice says what to do about violations.
	Advice string `json:"advice"`
	// Skipped is why the check did not run, empty if it did.
	Skipped string `json:"skipped,omitempty"`
}

// Report is the outcome of an audit.
type Report struct {
	// At is the time of the snapshot, by the database's clock.
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"`
	Checks  []Result  `json:"checks"`
}

// ViolatedError says that invariants do not hold.
type ViolatedError struct {
	// Checks names those that found something.
	Checks     []string
	Violations int64
}

func (e *ViolatedError) Error() string {
	return fmt.Sprintf("the audit found %d violations: %s", e.Violations, strings.Join(e.Checks, ", "))
}

// Err returns a ViolatedError if there is any violation.
func (r Report) Err() error {
	violated := &ViolatedError{}

	for _, c := range r.Checks {
		if c.Violations > 0 {
			violated.Checks = append(violated.Checks, c.Name)
			violated.Violations += c.Violations
		}
	}

	if violated.Violations == 0 {
		return nil
	}

	return violated
}

// Auditor checks a database.
type Auditor struct {
	pool    *pgxpool.Pool
	gateway payment.Gateway
}

// New returns an auditor of the database of pool and the record of gateway.
func New(pool *pgxpool.Pool, gateway payment.Gateway) *Auditor {
	return &Auditor{pool: pool, gateway: gateway}
}

// Names returns the names of all checks.
func Names() []string {
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}

	return names
}

// chosen returns the checks with these names, or all.
func chosen(names []string) ([]check, error) {
	all := checks()

	for _, name := range names {
		if !slices.ContainsFunc(all, func(c check) bool { return c.name == name }) {
			return nil, event.UnknownName("check", name, Names())
		}
	}

	return slices.DeleteFunc(all, func(c check) bool { return len(names) > 0 && !slices.Contains(names, c.name) }), nil
}

// Run checks everything in one snapshot. It blocks nobody: it takes no lock
// but ACCESS SHARE and no transaction id, so that readers of all events do not
// wait for it. Vacuum does, as for every transaction.
//
// Violations are no error: see Report.Err. Its errors are Unknown for a check, and
// those of the database and the gateway.
func (a *Auditor) Run(ctx context.Context, options Options) (Report, error) {
	options = options.orDefaults()

	wanted, err := chosen(options.Only)
	if err != nil {
		return Report{}, err
	}

	conn, err := a.pool.Acquire(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("connecting for the audit: %w", err)
	}

	// The temporary table goes with the connection.
	session := conn.Hijack()
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()

		_ = session.Close(closeCtx)
	}()

	started := time.Now()
	r := &run{options: options, checks: wanted, conn: session}

	if err := r.prepare(ctx, a.gateway); err != nil {
		return Report{}, err
	}

	if err := r.snapshot(ctx); err != nil {
		return Report{}, err
	}

	if err := r.confirm(ctx); err != nil {
		return Report{}, err
	}

	return Report{At: r.at, Seconds: time.Since(started).Seconds(), Checks: r.results()}, nil
}

const (
	closeTimeout = 2 * time.Second
	// confirmAfter is how long what seems to be stuck is watched.
	confirmAfter = 3 * time.Second
	// remembered bounds the ids that are kept for confirming and repairing.
	remembered = 10_000
)

// run is one audit.
type run struct {
	options Options
	checks  []check
	conn    *pgx.Conn
	schema  schema
	at      time.Time
	// found has what each check found, by name.
	found map[string]*finding
}

// finding is what a check has found so far.
type finding struct {
	examined int64
	total    int64
	first    []Violation
	skipped  string
}

func (f *finding) add(v Violation) {
	f.total++

	if len(f.first) < remembered {
		f.first = append(f.first, v)
	}
}

func (r *run) has(source string) bool {
	return slices.ContainsFunc(r.checks, func(c check) bool { return c.from == source })
}

// prepare does what must precede the snapshot: it reads the gateway's record
// into a temporary table. Everything that the record lacks was captured later.
func (r *run) prepare(ctx context.Context, gateway payment.Gateway) error {
	r.found = make(map[string]*finding, len(r.checks))
	for _, c := range r.checks {
		r.found[c.name] = &finding{}
	}

	var err error
	if r.schema, err = readSchema(ctx, r.conn); err != nil {
		return err
	}

	if !r.has(ledgerSource) {
		return nil
	}

	r.options.Progress(0, 1, "reading the record of the payment gateway")

	return loadLedger(ctx, r.conn, gateway, r.options.Ledger)
}

// snapshot runs all checks in one transaction.
func (r *run) snapshot(ctx context.Context) error {
	tx, err := r.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("beginning the audit: %w", err)
	}

	defer func() {
		rollbackCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()

		_ = tx.Rollback(rollbackCtx)
	}()

	// Whoever wants a table for himself, as the dropping of a partition does,
	// goes first. Hashes of a million orders fit into this much memory.
	_, err = tx.Exec(ctx, fmt.Sprintf(
		`SET LOCAL statement_timeout = %d; SET LOCAL lock_timeout = '2s'; SET LOCAL work_mem = '96MB'; SET LOCAL jit = off`,
		r.options.Timeout.Milliseconds()))
	if err != nil {
		return fmt.Errorf("preparing the audit: %w", err)
	}

	if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&r.at); err != nil {
		return fmt.Errorf("reading the time: %w", err)
	}

	needed := slices.DeleteFunc(sources(), func(s source) bool { return !r.has(s.name) })

	for i, s := range needed {
		r.options.Progress(i+1, len(needed)+1, "checking "+s.name)

		if err := r.read(ctx, tx, s); err != nil {
			return fmt.Errorf("checking %s: %w", s.name, err)
		}
	}

	return nil
}

// read runs all checks of a source in one pass.
func (r *run) read(ctx context.Context, tx pgx.Tx, s source) error {
	ours := slices.DeleteFunc(slices.Clone(r.checks), func(c check) bool { return c.from != s.name })

	for _, table := range s.needs {
		if !r.schema.has(table) {
			for _, c := range ours {
				r.found[c.name].skipped = "there is no table " + table + " yet"
			}

			return nil
		}
	}

	var (
		examined int64
		args     = r.args()
	)

	if err := tx.QueryRow(ctx, s.count, args).Scan(&examined); err != nil {
		return err
	}

	var faults, faulty []string

	for i, c := range ours {
		r.found[c.name].examined = examined
		faults = append(faults, fmt.Sprintf("(%s) AS fault%d", c.fault, i))
		faulty = append(faulty, fmt.Sprintf("fault%d IS NOT NULL", i))
	}

	rows, err := tx.Query(ctx, fmt.Sprintf(`SELECT * FROM (SELECT id, %s FROM (%s) AS r) AS f WHERE %s`,
		strings.Join(faults, ", "), s.rows(r.schema), strings.Join(faulty, " OR ")), args)
	if err != nil {
		return err
	}

	var (
		id      string
		details = make([]*string, len(ours))
		targets = []any{&id}
	)

	for i := range details {
		targets = append(targets, &details[i])
	}

	_, err = pgx.ForEachRow(rows, targets, func() error {
		for i, detail := range details {
			if detail != nil {
				r.found[ours[i].name].add(Violation{ID: id, Detail: *detail})
			}
		}

		return nil
	})

	return err
}

func (r *run) args() pgx.NamedArgs {
	return pgx.NamedArgs{
		"older": r.options.Older, "retention": r.options.Retention, "ledger": r.options.Ledger,
	}
}

// confirm looks again, a moment later and outside the snapshot, at what a check
// saw on its way: what has gone since was not stuck.
func (r *run) confirm(ctx context.Context) error {
	for _, c := range r.checks {
		f := r.found[c.name]
		if c.confirm == "" || f.total == 0 || f.total > int64(len(f.first)) {
			continue
		}

		if err := pause(ctx, time.Until(r.at.Add(confirmAfter))); err != nil {
			return err
		}

		ids := make([]string, len(f.first))
		for i, v := range f.first {
			ids[i] = v.ID
		}

		rows, err := r.conn.Query(ctx, c.confirm, ids)
		if err != nil {
			return fmt.Errorf("confirming %s: %w", c.name, err)
		}

		still, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("confirming %s: %w", c.name, err)
		}

		stuck := make(map[string]bool, len(still))
		for _, id := range still {
			stuck[id] = true
		}

		f.first = slices.DeleteFunc(f.first, func(v Violation) bool { return !stuck[v.ID] })
		f.total = int64(len(f.first))
	}

	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *run) results() []Result {
	var list []Result

	for _, c := range r.checks {
		f := r.found[c.name]
		slices.SortFunc(f.first, func(a, b Violation) int { return strings.Compare(a.ID, b.ID) })
		list = append(list, Result{
			Name: c.name, Means: c.means, Advice: c.advice, What: c.from, Skipped: f.skipped,
			Examined: f.examined, Violations: f.total, First: f.first[:min(len(f.first), r.options.Limit)],
		})
	}

	return list
}

// schema are the tables and columns that there are: the database may be older
// than the program.
type schema map[string]bool

// has reports whether there is a table, or a column as table.column.
func (s schema) has(name string) bool { return s[name] }

func readSchema(ctx context.Context, conn *pgx.Conn) (schema, error) {
	rows, err := conn.Query(ctx, `
		SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema()
		UNION ALL
		SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = current_schema()`)
	if err != nil {
		return nil, fmt.Errorf("reading the schema: %w", err)
	}

	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the schema: %w", err)
	}

	if !slices.Contains(names, "orders") {
		return nil, errors.New("the database has no tables of Millrace: run `millrace migrate up`")
	}

	s := make(schema, len(names))
	for _, name := range names {
		s[name] = true
	}

	return s, nil
}
