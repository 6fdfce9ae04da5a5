// Package invariant checks a live database for invariants that no constraint can
// express because they span several tables, time, or another system. It reports
// violations and, where there is one safe fix, repairs them on request.
//
// It does not replace monitoring, because it reads whole tables. The engine's own
// checks are in engine.go; a business adds its own.
package invariant

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Check is one invariant.
type Check struct {
	Name string
	// Means states the invariant. Advice explains how to handle violations.
	Means, Advice string
	// Fault is an SQL expression over a row of the source. It describes the
	// violation, or is NULL.
	Fault string
	// Confirm is a query that returns which of the IDs in $1 still violate the
	// invariant. It is set for checks that can see work in progress.
	Confirm string
	// Repair repairs one violation and describes the repair, or returns "" if the
	// violation is gone. It returns an error made by Refuse if a person has to
	// decide. It is nil for checks without a safe repair.
	Repair func(ctx context.Context, tx pgx.Tx, id string) (what string, err error)
}

// Source is a set of rows that is read once for all its checks.
type Source struct {
	// Name describes the rows, such as "orders".
	Name string
	// Prepare runs before the snapshot to load records from other systems into temporary
	// tables. It may be nil.
	Prepare func(ctx context.Context, conn *pgx.Conn, options Options) error
	// Count is a query for the number of rows examined.
	Count string
	// Rows is a query for rows with an id of type text. Its parameters are
	// @older, @retention and @ledger; see Options.
	Rows   string
	Checks []Check
}

// Options selects and limits the checks.
type Options struct {
	// Only names the checks to run. Defaults to all.
	Only []string
	// Limit is the number of violations listed per check. All are counted. Defaults to
	// 20.
	Limit int
	// Older is how long work may be in progress before it counts as stuck.
	// Defaults to 15m.
	Older time.Duration
	// Retention is the retention of the inbox, which does not recognize older messages.
	// Defaults to 168h.
	Retention time.Duration
	// Ledger is how far back to read other systems' records. Defaults to 720h.
	Ledger time.Duration
	// Timeout bounds each statement. Defaults to 5m.
	Timeout time.Duration
	// Progress is called before each step. Defaults to nothing.
	Progress func(step, steps int, what string)
}

func (o Options) withDefaults() Options {
	const day = 24 * time.Hour

	o.Limit = cmp.Or(max(o.Limit, 0), 20)
	o.Older = cmp.Or(max(o.Older, 0), 15*time.Minute)
	o.Retention = cmp.Or(max(o.Retention, 0), 7*day)
	o.Ledger = cmp.Or(max(o.Ledger, 0), 30*day)
	o.Timeout = cmp.Or(max(o.Timeout, 0), 5*time.Minute)

	if o.Progress == nil {
		o.Progress = func(int, int, string) {}
	}

	return o
}

// Violation is a row that violates an invariant.
type Violation struct {
	// ID identifies the row, such as an order, a product or a stream.
	ID string `json:"id"`
	// Detail describes the violation.
	Detail string `json:"detail"`
}

// Result is the result of one check.
type Result struct {
	Name string `json:"name"`
	// Means states the invariant.
	Means string `json:"means"`
	// Examined is the number of rows of What that were examined.
	Examined   int64  `json:"examined"`
	What       string `json:"what"`
	Violations int64  `json:"violations"`
	// First lists the first violations, by ID.
	First []Violation `json:"first,omitempty"`
	// Advice explains how to handle violations.
	Advice string `json:"advice"`
}

// Report is the result of all checks.
type Report struct {
	// At is the time of the snapshot, by the database's clock.
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"`
	Checks  []Result  `json:"checks"`
}

// ViolatedError lists the checks that found violations.
type ViolatedError struct {
	Checks     []string
	Violations int64
}

func (e *ViolatedError) Error() string {
	return "the audit found " + event.Plural(e.Violations, "violation", "violations") + ": " + strings.Join(e.Checks, ", ")
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
	sources []Source
}

// New returns an auditor for the given sources and the engine's own.
func New(pool *pgxpool.Pool, sources ...Source) *Auditor {
	return &Auditor{pool: pool, sources: append(sources, engine()...)}
}

// Names returns the names of all checks.
func (a *Auditor) Names() []string {
	var names []string

	for _, s := range a.sources {
		for _, c := range s.Checks {
			names = append(names, c.Name)
		}
	}

	return names
}

// Listed describes a check that has not run.
type Listed struct {
	Name string `json:"name"`
	// What is what the check examines, and Means states the invariant.
	What  string `json:"what"`
	Means string `json:"means"`
	// Repairable is whether violations have a safe repair.
	Repairable bool `json:"repairable"`
}

// List describes all checks.
func (a *Auditor) List() []Listed {
	var list []Listed

	for _, s := range a.sources {
		for _, c := range s.Checks {
			list = append(list, Listed{Name: c.Name, What: s.Name, Means: c.Means, Repairable: c.Repair != nil})
		}
	}

	return list
}

// selected returns the sources with only the named checks, or all if none is named.
func (a *Auditor) selected(only []string) ([]Source, error) {
	known := a.Names()

	for _, name := range only {
		if !slices.Contains(known, name) {
			return nil, event.UnknownName("check", name, known)
		}
	}

	if len(only) == 0 {
		return a.sources, nil
	}

	var sources []Source

	for _, s := range a.sources {
		s.Checks = slices.DeleteFunc(slices.Clone(s.Checks), func(c Check) bool { return !slices.Contains(only, c.Name) })
		if len(s.Checks) > 0 {
			sources = append(sources, s)
		}
	}

	return sources, nil
}
