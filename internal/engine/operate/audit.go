package operate

import (
	"context"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/invariant"
)

// maxRepairs is the maximum number of violations per check to repair in one run.
const maxRepairs = 10_000

// Audit is the result of an audit.
type Audit struct {
	invariant.Report

	DryRun  bool               `json:"dry_run,omitempty"`
	Repairs []invariant.Repair `json:"repairs,omitempty"`
}

// Audit checks invariants. With repair it repairs the violations that have a safe fix
// and checks again; with dry it only reports what it would repair.
func (o *Operator) Audit(ctx context.Context, options invariant.Options, repair, dry bool, by activity.Actor) (out Audit, err error) {
	if dry && !repair {
		return out, event.Errorf(event.Invalid, "--dry-run requires --repair")
	}

	options.Retention = o.Retention

	listed := options.Limit
	if repair {
		options.Limit = max(listed, maxRepairs)
	}

	if out.Report, err = o.Auditor.Run(ctx, options); err != nil || !repair {
		return out, err
	}

	out.DryRun = dry

	if out.Repairs, err = o.Auditor.Repair(ctx, out.Report, by, dry); err != nil {
		return out, err
	}

	if !dry && len(out.Repairs) > 0 {
		if out.Report, err = o.Auditor.Run(ctx, options); err != nil {
			return out, err
		}
	}

	for i, c := range out.Checks {
		out.Checks[i].First = c.First[:min(len(c.First), max(listed, 1))]
	}

	return out, nil
}
