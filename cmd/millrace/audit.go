package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/engine/poison"
	"github.com/millracehq/millrace/internal/engine/upkeep"
	"github.com/millracehq/millrace/internal/shop/audit"
)

// repairAtOnce is how many violations of a check are repaired in one go.
const repairAtOnce = 10_000

// auditOutput is what the command did; it is also its JSON output.
type auditOutput struct {
	audit.Report

	DryRun  bool           `json:"dry_run,omitempty"`
	Repairs []audit.Repair `json:"repairs,omitempty"`
}

func newAudit(opts *options) *cobra.Command {
	var (
		options     audit.Options
		repair, dry bool
		by          poison.Actor
	)

	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check what must always be true of the database, and of the payment gateway's record",
		Long: `Check every invariant in one snapshot, while the service runs: nobody is blocked.
For each it prints what was examined, what violates it and what to do.

--repair mends what has one safe answer, then checks again; --repair --dry-run
shows what it would do. Each repair leaves a row in the table repairs.

Checks: ` + strings.Join(audit.Names(), ", ") + `.

Exit code 1 says that something was found, and is still so after a repair.`,
		Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			if dry && !repair {
				return usageError{errors.New("--dry-run belongs to --repair")}
			}

			cfg, err := opts.load()
			if err != nil {
				return err
			}

			options.Retention = cfg.Inbox.Retention

			out, err := runAudit(cmd.Context(), service.Audit, options, repair, dry, by)
			if err != nil {
				return err
			}

			if err := opts.print(cmd.OutOrStdout(), out, func(w io.Writer) { writeAudit(w, out) }); err != nil {
				return err
			}

			return out.Err() // an audit.ViolatedError: exit code 1
		}),
	}

	flags := cmd.Flags()
	flags.StringSliceVar(&options.Only, "only", nil, "only these checks, separated by commas")
	flags.IntVar(&options.Limit, "limit", 20, "how many violations of a check to list; all are counted")
	flags.DurationVar(&options.Older, "older", 15*time.Minute, "how long something may be on its way before it counts as stuck")
	flags.DurationVar(&options.Ledger, "ledger", 30*24*time.Hour, "how far back to read the payment gateway's record")
	flags.DurationVar(&options.Timeout, "timeout", 5*time.Minute, "how long each statement may take")
	flags.BoolVar(&repair, "repair", false, "mend what has one safe answer")
	flags.BoolVar(&dry, "dry-run", false, "with --repair: only show what would be mended")
	actorFlags(cmd, &by)

	return cmd
}

func runAudit(ctx context.Context, auditor *audit.Auditor, options audit.Options, repair, dry bool, by poison.Actor) (out auditOutput, err error) {
	listed := options.Limit
	if repair {
		options.Limit = max(listed, repairAtOnce)
	}

	if out.Report, err = watchAudit(ctx, auditor, options); err != nil {
		return out, err
	}

	if repair {
		out.DryRun = dry

		if out.Repairs, err = auditor.Repair(ctx, out.Report, by, dry); err != nil {
			return out, err
		}
	}

	if repair && !dry && len(out.Repairs) > 0 {
		if out.Report, err = watchAudit(ctx, auditor, options); err != nil {
			return out, err
		}
	}

	for i, c := range out.Checks {
		out.Checks[i].First = c.First[:min(len(c.First), max(listed, 1))]
	}

	return out, nil
}

// watchAudit runs an audit and shows people how far it is.
func watchAudit(ctx context.Context, auditor *audit.Auditor, options audit.Options) (audit.Report, error) {
	if !isatty.IsTerminal(os.Stderr.Fd()) {
		return auditor.Run(ctx, options)
	}

	bar := progressbar.NewOptions(1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish())
	options.Progress = func(step, steps int, what string) {
		bar.ChangeMax(steps)
		bar.Describe(what)
		_ = bar.Set(step)
	}

	defer func() { _ = bar.Finish() }()

	return auditor.Run(ctx, options)
}

func writeAudit(w io.Writer, out auditOutput) {
	fmt.Fprintln(w, "CHECK\tEXAMINED\tRESULT")

	for _, c := range out.Checks {
		switch {
		case c.Skipped != "":
			fmt.Fprintf(w, "%s\t-\tskipped: %s\n", c.Name, c.Skipped)
		case c.Violations == 0:
			fmt.Fprintf(w, "%s\t%d %s\tok\n", c.Name, c.Examined, c.What)
		default:
			fmt.Fprintf(w, "%s\t%d %s\t%d violations\n", c.Name, c.Examined, c.What, c.Violations)
		}
	}

	for _, c := range out.Checks {
		if c.Violations > 0 {
			writeViolations(w, c)
		}
	}

	writeRepairs(w, out)
	fmt.Fprintf(w, "\nas of %s, in %.1f s\n", stamp(out.At), out.Seconds)
}

func writeViolations(w io.Writer, c audit.Result) {
	fmt.Fprintf(w, "\n%s: %s\n", c.Name, c.Means)

	for _, v := range c.First {
		fmt.Fprintf(w, "  %s: %s\n", oneLine(v.ID, 200), oneLine(v.Detail, 300))
	}

	if more := c.Violations - int64(len(c.First)); more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}

	fmt.Fprintf(w, "  What to do: %s\n", c.Advice)
}

func writeRepairs(w io.Writer, out auditOutput) {
	if len(out.Repairs) == 0 {
		return
	}

	if out.DryRun {
		fmt.Fprintln(w, "\nWould be repaired:")
	} else {
		fmt.Fprintln(w, "\nRepaired; the checks above are from afterwards:")
	}

	for _, r := range out.Repairs {
		what := r.What
		if r.Refused != "" {
			what = "left alone: " + r.Refused
		}

		fmt.Fprintf(w, "  %s %s: %s\n", r.Check, oneLine(r.ID, 200), what)
	}
}

// maintenanceOutput is what the command did; it is also its JSON output.
type maintenanceOutput struct {
	Tasks []upkeep.Done       `json:"tasks"`
	Old   *upkeep.Transaction `json:"old_transaction,omitempty"`
}

func newMaintenance(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "maintenance",
		Short: "Make the partitions of the days to come and remove what is past its retention",
		Long: `Do now what the service does by itself every maintenance.every: make the
partitions of the days to come and remove what is past its retention. One process
at a time does it. It also tells of a transaction that is open for long.`,
		Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			done, failed := service.Janitor.Do(cmd.Context())
			if done == nil && failed != nil {
				return failed
			}

			old, err := service.Janitor.Old(cmd.Context())
			if err != nil {
				return errors.Join(failed, err)
			}

			err = opts.print(cmd.OutOrStdout(), maintenanceOutput{Tasks: done, Old: old}, func(w io.Writer) {
				fmt.Fprintln(w, "TASK\tREMOVED\tSECONDS")

				for _, d := range done {
					fmt.Fprintf(w, "%s\t%d\t%.2f\n", d.Task, d.Removed, d.Seconds)
				}

				if old != nil {
					fmt.Fprintf(w, "\nA transaction holds back vacuum: %s\n", describe(*old))
				}
			})

			return errors.Join(failed, err)
		}),
	}
}

// describe says in a line what is open.
func describe(t upkeep.Transaction) string {
	return fmt.Sprintf("%s %q, pid %d, %s, on %s, open for %s", t.Kind, oneLine(t.Name, 64), t.PID, t.State, t.Database, t.Age.Round(time.Second))
}
