package operate

import (
	"context"
	"errors"

	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Upkeep is the result of an upkeep run.
type Upkeep struct {
	Tasks []upkeep.Done `json:"tasks"`
	// Old is a long-running transaction, or nil.
	Old *upkeep.Transaction `json:"old_transaction,omitempty"`
}

// Upkeep runs all tasks now. It returns the completed tasks even if some failed;
// Tasks is nil if none completed.
func (o *Operator) Upkeep(ctx context.Context) (done Upkeep, err error) {
	done.Tasks, err = o.Janitor.Do(ctx)
	if done.Tasks == nil && err != nil {
		return done, err
	}

	old, oldErr := o.Janitor.Old(ctx)
	done.Old = old

	return done, errors.Join(err, oldErr)
}
