package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/shop/audit"
)

// auditing holds the flags of an audit.
type auditing struct {
	checks                 invariant.Options
	repair, dry, confirmed bool
}

func newAudit(opts *options) *cobra.Command {
	var a auditing

	return operation(opts, &cobra.Command{
		Use: "audit", Short: "Check the invariants of the database and the payment gateway's record",
		Long: `Check all invariants in one snapshot, without blocking a running service. For each
invariant, the command prints what it examined, what violates it and what to do.

--repair fixes the violations that have only one safe fix, then checks again. On a
terminal, it first lists them and asks for confirmation. --repair --dry-run only shows
what would be fixed. Each repair is recorded.

Checks: ` + strings.Join(audit.Names(), ", ") + `.

Exit code 1 if there are violations; with --repair, if any remain.`,
		Example: `  millrace audit --only stock,ledger
  millrace audit --repair --dry-run`,
	}, func(c *call) error {
		out, err := a.run(c)
		if err != nil && len(out.Repairs) > 0 { // print the repairs, even if a later step failed
			return errors.Join(c.print(out, func(w io.Writer) { writeRepairs(w, "Repaired:", out.Repairs) }), err)
		}

		if err != nil {
			return err
		}

		if err := c.print(out, func(w io.Writer) { writeAudit(w, out) }); err != nil {
			return err
		}

		return out.Err()
	}, recorded, func(_ *options, flags *pflag.FlagSet) {
		flags.StringSliceVar(&a.checks.Only, "only", nil, "run only these checks, separated by commas")
		flags.IntVar(&a.checks.Limit, "limit", 20, "list at most this many violations per check; all are counted")
		flags.DurationVar(&a.checks.Older, "older", 15*time.Minute, "treat anything in progress for longer than this as stuck")
		flags.DurationVar(&a.checks.Ledger, "ledger", 30*24*time.Hour, "how far back to compare the gateway's record")
		flags.DurationVar(&a.checks.Timeout, "timeout", 5*time.Minute, "time limit for each statement")
		flags.BoolVar(&a.repair, "repair", false, "fix the violations that have only one safe fix")
		flags.BoolVar(&a.dry, "dry-run", false, "with --repair, only show what would be fixed")
		flags.BoolVar(&a.confirmed, "yes", false, "with --repair, do not ask for confirmation on a terminal")
	})
}

// run checks and repairs. On a terminal, it asks before repairing anything.
func (a auditing) run(c *call) (operate.Audit, error) {
	progress, done := showProgress("checking")
	defer done()

	a.checks.Progress = func(step, steps int, _ string) { progress(int64(step), int64(steps)) }

	if a.repair && !a.dry && !a.confirmed && c.interactive() {
		if err := c.confirmRepairs(a.checks); err != nil {
			return operate.Audit{}, err
		}
	}

	return c.Operator.Audit(c.ctx, a.checks, a.repair, a.dry, c.by)
}

func writeAudit(w io.Writer, out operate.Audit) {
	fmt.Fprintln(w, "CHECK\tEXAMINED\tRESULT")

	for _, c := range out.Checks {
		result := "ok"
		if c.Violations > 0 {
			result = event.Plural(c.Violations, "violation", "violations")
		}

		row(w, c.Name, fmt.Sprintf("%d %s", c.Examined, c.What), result)
	}

	for _, c := range out.Checks {
		if c.Violations > 0 {
			writeViolations(w, c)
		}
	}

	title := "Repaired; the checks above ran after the repair:"
	if out.DryRun {
		title = "Would be repaired:"
	}

	writeRepairs(w, title, out.Repairs)
	fmt.Fprintf(w, "\nas of %s, in %.1f s\n", stamp(out.At), out.Seconds)
}

func writeViolations(w io.Writer, c invariant.Result) {
	fmt.Fprintf(w, "\n%s: %s\n", c.Name, c.Means)

	for _, v := range c.First {
		fmt.Fprintf(w, "  %s: %s\n", oneLine(v.ID, 200), oneLine(v.Detail, 300))
	}

	if more := c.Violations - int64(len(c.First)); more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}

	fmt.Fprintf(w, "  What to do: %s\n", c.Advice)
}

// confirmRepairs shows what a repair would do and asks for confirmation.
func (c *call) confirmRepairs(config invariant.Options) error {
	would, err := c.Operator.Audit(c.ctx, config, true, true, c.by)
	if err != nil || len(would.Repairs) == 0 {
		return err
	}

	var text strings.Builder

	for _, r := range would.Repairs[:min(len(would.Repairs), previewed)] {
		fmt.Fprintf(&text, "  %s %s: %s\n", r.Check, oneLine(r.ID, 200), oneLine(r.What, 300))
	}

	if more := len(would.Repairs) - previewed; more > 0 {
		fmt.Fprintf(&text, "  and %d more\n", more)
	}

	fmt.Fprintf(&text, "Repair %s?", event.Plural(len(would.Repairs), "violation", "violations"))

	return c.confirm(text.String())
}

func writeRepairs(w io.Writer, title string, repairs []invariant.Repair) {
	if len(repairs) == 0 {
		return
	}

	fmt.Fprintln(w, "\n"+title)

	for _, r := range repairs {
		what := r.What
		if r.Refused != "" {
			what = "not repaired: " + r.Refused
		}

		fmt.Fprintf(w, "  %s %s: %s\n", r.Check, oneLine(r.ID, 200), what)
	}
}
