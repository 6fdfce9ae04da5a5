package operate

import (
	"context"
	"errors"

	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Upkeep is what an upkeep run did.
type Upkeep struct {
	Tasks []upkeep.Done `json:"tasks"`
	// Old is a transaction that has been open for long.
	Old *upkeep.Transaction `json:"old_transaction,omitempty"`
}

// Upkeep runs all tasks now. It returns what was done even if some of it
// failed; Tasks is nil if nothing was.
func (o *Operator) Upkeep(ctx context.Context) (done Upkeep, err error) {
	done.Tasks, err = o.Janitor.Do(ctx)
	if done.Tasks == nil && err != nil {
		return done, err
	}

	old, oldErr := o.Janitor.Old(ctx)
	done.Old = old

	return done, errors.Join(err, oldErr)
}
