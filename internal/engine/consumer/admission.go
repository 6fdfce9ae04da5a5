package consumer

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// admitFunc is the type of [Effect.Admit].
type admitFunc[P event.Payload] func(ctx context.Context, db postgres.Querier, events []event.Event[P]) ([]error, error)

// admission batches events and checks in the inbox and with the handler whether their
// effects may proceed. The error of a unit is the reason for refusal.
type admission[P event.Payload] struct {
	batches[event.Event[P]]

	admit admitFunc[P]
}

func newAdmission[P event.Payload](r *Router, consumer string, admit admitFunc[P]) *admission[P] {
	a := &admission[P]{admit: admit}
	a.batches = newBatches(r, consumer, a.run)

	return a
}

func (a *admission[P]) run(units []*unit[event.Event[P]]) {
	var answers []error

	err := a.router.untilReadable(func(ctx context.Context) (err error) {
		answers, err = a.answer(ctx, units)

		return err
	})

	for i, u := range units {
		switch {
		case err != nil:
			u.done <- err
		case u.blocked:
			u.done <- errBlocked
		default:
			u.done <- answers[i]
		}
	}
}

func (a *admission[P]) answer(ctx context.Context, units []*unit[event.Event[P]]) ([]error, error) {
	answers := make([]error, len(units))

	// No transaction: the result is only a hint. Record checks it again under locks.
	verdicts, err := inbox.Seen(ctx, a.router.pool, a.consumer, claimsOf(units))
	if err != nil {
		return nil, err
	}

	batch := &pgx.Batch{}
	found := failed.QueueKeys(batch, a.consumer, keysOf(units))

	if err := a.router.pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("reading failed keys: %w", err)
	}

	decided, err := a.decided(ctx, a.router.pool, units, found)
	if err != nil {
		return nil, err
	}

	fresh, index, conflicts, err := a.fresh(units, verdicts, found, func(i int) (bool, error) {
		if u := units[i]; !decided[i] && u.from.entry == nil && found[u.from.stored] {
			blocked, err := a.router.failed.BlockAlone(ctx, u.from.failed(fate{}))
			if blocked {
				a.router.wakeAwaiting(u.from.route.Topic, keysOf(units[i:i+1]))
			}

			return blocked, err
		}

		return decided[i], nil
	})

	for i, conflict := range conflicts {
		answers[i] = conflict
	}

	if err != nil || len(fresh) == 0 || a.admit == nil {
		return answers, err
	}

	admitted, err := protect(func() ([]error, error) { return a.admit(ctx, a.router.pool, fresh) })
	for i, answer := range admitted {
		answers[index[i]] = answer
		units[index[i]].event = fresh[i]
	}

	return answers, err
}
