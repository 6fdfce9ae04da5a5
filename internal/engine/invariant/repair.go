package invariant

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Repair is a violation that was repaired or, in a dry run, would be.
type Repair struct {
	Check string `json:"check"`
	ID    string `json:"id"`
	What  string `json:"what"`
	// Refused is the reason why the violation was not repaired.
	Refused string `json:"refused,omitempty"`
}

type refusedError struct{ why string }

func (e *refusedError) Error() string { return e.why }

// Refuse returns the error for a repair that needs a person's decision.
func Refuse(why string) error { return &refusedError{why: why} }

// errDryRun rolls back the transaction of a repair.
var errDryRun = errors.New("dry run")

// Repair repairs the violations listed in report that have a safe repair. Each is
// rechecked under a lock and repaired in its own transaction, which also records the
// actor. A dry run returns the same but changes nothing.
func (a *Auditor) Repair(ctx context.Context, report Report, by activity.Actor, dry bool) ([]Repair, error) {
	var repairs []Repair

	for _, s := range a.sources {
		for _, c := range s.Checks {
			i := slices.IndexFunc(report.Checks, func(r Result) bool { return r.Name == c.Name })
			if c.Repair == nil || i < 0 {
				continue
			}

			for _, v := range report.Checks[i].First {
				repair, err := a.repair(ctx, c, v.ID, by, dry)
				if err != nil {
					return repairs, fmt.Errorf("repairing %s of %s: %w", c.Name, v.ID, err)
				}

				if repair.What != "" || repair.Refused != "" { // otherwise the violation is gone
					repairs = append(repairs, repair)
				}
			}
		}
	}

	return repairs, nil
}

func (a *Auditor) repair(ctx context.Context, c Check, id string, by activity.Actor, dry bool) (Repair, error) {
	repair := Repair{Check: c.Name, ID: id}

	err := postgres.InTx(ctx, a.pool, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '60s'`); err != nil {
			return err
		}

		if repair.What, err = c.Repair(ctx, tx, id); err != nil || repair.What == "" {
			return err
		}

		if dry {
			return errDryRun
		}

		return activity.Record(ctx, tx, by, activity.Action{Action: activity.Repaired, Subject: c.Name + " " + id, Detail: repair.What})
	})

	if refused, ok := errors.AsType[*refusedError](err); ok {
		repair.Refused = refused.why

		return repair, nil
	}

	if errors.Is(err, errDryRun) {
		err = nil
	}

	return repair, err
}
