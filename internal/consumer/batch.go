package consumer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/inbox"
	"github.com/millrace/millrace/internal/outbox"
	"github.com/millrace/millrace/internal/postgres"
)

// ErrStopping ends the work on a message because the service stops. The
// message is not acknowledged and will be delivered again.
var ErrStopping = errors.New("the service is stopping")

// maxPause caps the back-off while Postgres is in trouble.
const maxPause = 5 * time.Second

// unit is a message on its way through a batch. E is what the handler gets.
type unit[E any] struct {
	event E
	key   string
	entry inbox.Entry
	// done receives the fate of the message exactly once: nil when it is
	// applied, now or earlier.
	done chan error
}

// batchHandler applies events in a transaction and returns what they cause.
type batchHandler[E any] func(ctx context.Context, tx pgx.Tx, events []E) ([]event.Outgoing, error)

// applier applies batches of one consumer.
type applier[E any] struct {
	router   *Router
	consumer string
	handle   batchHandler[E]
	group    *group[*unit[E]]
}

func newApplier[E any](r *Router, consumer string, handle batchHandler[E]) *applier[E] {
	a := &applier[E]{router: r, consumer: consumer, handle: handle}
	a.group = newGroup(r.cfg.MaxBatch, r.cfg.ConcurrentBatches, func(u *unit[E]) string { return u.key }, a.apply)

	return a
}

// submit hands u to the next batch and waits for its fate.
func (a *applier[E]) submit(u *unit[E]) error {
	u.done = make(chan error, 1)
	a.group.add(u)

	return <-u.done
}

// apply decides the fate of every unit.
func (a *applier[E]) apply(units []*unit[E]) {
	err := a.router.untilAvailable(func(ctx context.Context) error { return a.transact(ctx, units) })

	var rejected event.RejectSome

	switch {
	case err == nil:
		finish(units, nil)
	case errors.Is(err, ErrStopping):
		finish(units, err)
	case errors.As(err, &rejected):
		a.reject(units, rejected)
	case len(units) == 1:
		finish(units, err)
	default:
		// One of them spoils it for all: each gets a transaction of its own,
		// in order.
		for i := range units {
			a.apply(units[i : i+1])
		}
	}
}

// reject ends the units at fault and runs the rest together again.
func (a *applier[E]) reject(units []*unit[E], rejected event.RejectSome) {
	rest := make([]*unit[E], 0, len(units))

	for i, u := range units {
		if err := rejected[i]; err != nil {
			u.done <- err
		} else {
			rest = append(rest, u)
		}
	}

	switch {
	case len(rest) == len(units): // indexes outside the batch: a mistake of the handler
		finish(rest, errors.New("handler rejected events that are not in its batch"))
	case len(rest) > 0:
		a.apply(rest)
	}
}

func finish[E any](units []*unit[E], err error) {
	for _, u := range units {
		u.done <- err
	}
}

// transact claims the units, applies the fresh ones and commits.
func (a *applier[E]) transact(ctx context.Context, units []*unit[E]) error {
	started := time.Now()
	caused := 0

	err := postgres.InTx(ctx, a.router.pool, func(tx pgx.Tx) error {
		fresh, index, err := a.claim(ctx, tx, units)
		if err != nil || len(fresh) == 0 {
			return err
		}

		outgoing, err := protect(func() ([]event.Outgoing, error) { return a.handle(ctx, tx, fresh) })
		if err != nil {
			return reindex(err, index)
		}

		caused = len(outgoing)

		return outbox.Append(ctx, tx, outgoing)
	})
	if err != nil {
		return err
	}

	if caused > 0 {
		a.router.onCommit()
	}

	a.router.metrics.batchSize.WithLabelValues(a.consumer).Observe(float64(len(units)))
	a.router.metrics.batchSeconds.WithLabelValues(a.consumer).Observe(time.Since(started).Seconds())

	return nil
}

// claim returns the events to apply and, for each, its index in units.
func (a *applier[E]) claim(ctx context.Context, tx pgx.Tx, units []*unit[E]) (fresh []E, index []int, err error) {
	entries := make([]inbox.Entry, len(units))
	for i, u := range units {
		entries[i] = u.entry
	}

	verdicts, err := inbox.Claim(ctx, tx, a.consumer, entries)
	if err != nil {
		return nil, nil, err
	}

	conflicts := event.RejectSome{}

	for i, verdict := range verdicts {
		switch verdict {
		case inbox.Fresh:
			fresh, index = append(fresh, units[i].event), append(index, i)
		case inbox.Conflict:
			conflicts[i] = inbox.ErrConflict
		case inbox.Duplicate:
			a.router.metrics.duplicates.WithLabelValues(a.consumer).Inc()
		}
	}

	return fresh, index, conflicts.Err()
}

// reindex translates the indexes of a handler's rejections, which count the
// fresh events, to those of the whole batch.
func reindex(err error, index []int) error {
	var rejected event.RejectSome
	if !errors.As(err, &rejected) {
		return err
	}

	translated := make(event.RejectSome, len(rejected))

	for i, cause := range rejected {
		if i >= 0 && i < len(index) {
			translated[index[i]] = cause
		}
	}

	return translated
}

// untilAvailable runs attempt until Postgres is there for it: trouble of the
// infrastructure is never a message's fault. It gives up with ErrStopping.
func (r *Router) untilAvailable(attempt func(ctx context.Context) error) error {
	operation := func() (struct{}, error) {
		ctx, cancel := context.WithTimeout(r.working, r.cfg.HandlerTimeout)
		defer cancel()

		err := attempt(ctx)

		switch {
		case err == nil:
			r.available()
		case r.working.Err() != nil:
			err = backoff.Permanent(ErrStopping)
		case !postgres.IsUnavailable(err):
			err = backoff.Permanent(err)
		}

		return struct{}{}, err
	}

	policy := backoff.NewExponentialBackOff()
	policy.InitialInterval = 10 * time.Millisecond
	policy.Multiplier = 2
	policy.MaxInterval = maxPause

	_, err := backoff.Retry(r.working, operation, backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(r.unavailable))
	if err != nil && r.working.Err() != nil {
		return ErrStopping
	}

	return err
}

// pauseWorthLogging tells a lost race between transactions, which the next
// attempt wins, from an outage.
const pauseWorthLogging = 100 * time.Millisecond

// unavailable logs when consumption begins to pause, once.
func (r *Router) unavailable(err error, pause time.Duration) {
	r.metrics.unavailable.Inc()

	if pause >= pauseWorthLogging && r.paused.CompareAndSwap(false, true) {
		r.logger.Warn("postgres is unavailable: consumption pauses until it is back", slog.Any("error", err))
	}
}

func (r *Router) available() {
	if r.paused.CompareAndSwap(true, false) {
		r.logger.Info("postgres is back: consumption goes on")
	}
}
