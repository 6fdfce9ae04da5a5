package consumer

import (
	"context"
	"errors"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// decision is what admission says about an event that is not rejected.
type decision int

const (
	admitted decision = iota
	skipped
	alreadyApplied
	mustWait
)

// admission asks the inbox and the handler, for many events at once, whether an
// effect may proceed.
type admission[P event.Payload] struct {
	router   *Router
	consumer string
	check    func(ctx context.Context, db postgres.Querier, events []event.Event[P]) ([]error, error)
	group    *group[*question[P]]
}

type question[P event.Payload] struct {
	event    event.Event[P]
	entry    inbox.Entry
	from     *delivery
	decision decision
	done     chan error
}

func newAdmission[P event.Payload](r *Router, consumer string,
	check func(ctx context.Context, db postgres.Querier, events []event.Event[P]) ([]error, error),
) *admission[P] {
	a := &admission[P]{router: r, consumer: consumer, check: check}
	a.group = newGroup(r.cfg.MaxBatch, r.cfg.ConcurrentBatches,
		func(q *question[P]) string { return q.event.Payload.Key() }, a.run)

	return a
}

// ask returns the event as admission leaves it.
func (a *admission[P]) ask(e event.Event[P], entry inbox.Entry, d *delivery) (event.Event[P], decision, error) {
	q := &question[P]{event: e, entry: entry, from: d, done: make(chan error, 1)}
	a.group.add(q)

	err := <-q.done

	return q.event, q.decision, err
}

func (a *admission[P]) run(questions []*question[P]) {
	var answers []error

	err := a.router.untilAvailable(func(ctx context.Context) (err error) {
		answers, err = a.answer(ctx, questions)

		return err
	})

	for i, q := range questions {
		switch {
		case err != nil:
			q.done <- err
		case errors.Is(answers[i], event.ErrSkip):
			q.decision = skipped
			q.done <- nil
		default:
			q.done <- answers[i]
		}
	}
}

func (a *admission[P]) answer(ctx context.Context, questions []*question[P]) ([]error, error) {
	answers := make([]error, len(questions))

	// No transaction: this result is only a hint, which Record checks again under
	// locks.
	fresh, index, err := a.fresh(ctx, questions, answers)
	if err != nil || len(fresh) == 0 || a.check == nil {
		return answers, err
	}

	verdicts, err := protect(func() ([]error, error) { return a.check(ctx, a.router.pool, fresh) })
	for i, verdict := range verdicts {
		answers[index[i]] = verdict
		questions[index[i]].event = fresh[i]
	}

	return answers, err
}

// fresh returns the events that are new to the inbox, with their indexes.
func (a *admission[P]) fresh(ctx context.Context, questions []*question[P], answers []error) (events []event.Event[P], index []int, err error) {
	entries := make([]inbox.Entry, len(questions))
	keys := make([]string, len(questions))

	for i, q := range questions {
		entries[i], keys[i] = q.entry, failed.WaitingKey(q.from.key)
	}

	verdicts, err := inbox.Seen(ctx, a.router.pool, a.consumer, entries)
	if err != nil {
		return nil, nil, err
	}

	waiting, err := failed.WaitingOf(ctx, a.router.pool, a.consumer, keys)
	if err != nil {
		return nil, nil, err
	}

	for i, verdict := range verdicts {
		switch verdict {
		case inbox.Fresh:
			q := questions[i]
			q.decision = admitted

			if waiting[keys[i]] && q.from.blockable() {
				blocked, err := a.router.failed.BlockAlone(ctx, q.from.failed(fate{}))
				if err != nil {
					return nil, nil, err
				}

				if blocked {
					q.decision = mustWait

					continue
				}
			}

			events, index = append(events, q.event), append(index, i)
		case inbox.Duplicate:
			questions[i].decision = alreadyApplied
			a.router.metrics.duplicates.WithLabelValues(a.consumer).Inc()
		case inbox.Conflict:
			answers[i] = inbox.ErrConflict
		}
	}

	return events, index, nil
}
