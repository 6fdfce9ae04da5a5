package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// On registers a handler of single events. The handler runs in a transaction that it
// may share with other messages and must make changes only through tx. An error rolls
// everything back; see event.Reject for errors with a special meaning.
//
// publishes contains one value of each payload type that the handler may return. A handler
// that returns an event on another topic fails.
func On[P event.Payload](r *Router, consumer string,
	handle func(ctx context.Context, tx pgx.Tx, e event.Event[P]) ([]event.Outgoing, error), publishes ...event.Payload,
) {
	OnBatch(r, consumer, func(ctx context.Context, tx pgx.Tx, events []event.Event[P]) ([]event.Outgoing, error) {
		var outgoing []event.Outgoing

		for i, e := range events {
			caused, err := handle(ctx, tx, e)
			if isRejection(err) {
				return nil, event.RejectSome{i: err}
			}

			if err != nil {
				return nil, err
			}

			outgoing = append(outgoing, caused...)
		}

		return outgoing, nil
	}, publishes...)
}

// OnBatch registers a handler of event batches, for set-based SQL. A batch may have
// several events with the same key, in order of arrival. The handler must decide on them
// in that order and write each row once. It returns event.RejectSome if some events are
// at fault; on any other error each event is retried alone. See On for publishes.
func OnBatch[P event.Payload](r *Router, consumer string, handle batchHandler[event.Event[P]], publishes ...event.Payload) {
	apply := newApplier(r, consumer, handle)

	register(r, consumer, &apply.group.lines, func(e event.Event[P], d *delivery) error {
		_, err := apply.submit(e, d, d.place)

		return err
	}, publishes)
}

// Effect is a handler that calls an external system before its transaction.
type Effect[P event.Payload, R any] struct {
	// Admit checks a batch of events that are new to the inbox. For each it returns
	// nil to proceed, event.ErrSkip to proceed without Perform, or the reason for
	// rejection. The data it reads may have changed by the time Record runs. It may
	// add data to the payloads; Perform and Record see the changed events. If nil,
	// all events proceed.
	Admit func(ctx context.Context, db postgres.Querier, events []event.Event[P]) ([]error, error)
	// Needs returns the dependency that Perform uses for an event, or "" for none. The
	// event waits while the dependency is unavailable. Needs may be nil.
	Needs func(e event.Event[P]) string
	// Perform calls the external system. It may run more than once, so its
	// idempotency key must depend only on the event. It returns an event.LaterError
	// if this event may succeed later, and an event.UnavailableError if a dependency
	// is unavailable.
	Perform func(ctx context.Context, e event.Event[P]) (R, error)
	// Record stores the results in the transaction.
	Record func(ctx context.Context, tx pgx.Tx, results []event.Effected[P, R]) ([]event.Outgoing, error)
	// Late receives the result for an event that a concurrent delivery has already
	// applied. It may differ from the recorded result. If nil, such results are dropped.
	Late func(ctx context.Context, tx pgx.Tx, results []event.Effected[P, R]) ([]event.Outgoing, error)
	// Independent is true if Admit does not depend on what Record stores for earlier
	// events with the same key. The effect of an event is then performed as soon as that of
	// the one ahead has been, and Record may store several in one transaction. Otherwise,
	// events with the same key are handled one at a time.
	Independent bool
}

// OnEffect registers a handler that calls an external system. The effects of events with
// the same key are performed one after the other, in order. An event that is already in
// the inbox is acknowledged without Perform. See On for publishes.
func OnEffect[P event.Payload, R any](r *Router, consumer string, effect Effect[P, R], publishes ...event.Payload) {
	admit := newAdmission(r, consumer, effect.Admit)
	record := newApplier(r, consumer, effect.Record)
	record.group.performed = true

	var inLine *lines
	if effect.Independent {
		inLine = &record.group.lines
	}

	register(r, consumer, inLine, func(e event.Event[P], d *delivery) error {
		question, skip, err := admit.inTurn(e, d, inLine)
		if err != nil || question.verdict == inbox.Duplicate {
			return err
		}

		result := event.Effected[P, R]{Event: question.event}

		if !skip {
			crashpoint.At(crashpoint.EffectAdmitted)

			value, err := perform(r, effect, question.event, d)
			if err != nil {
				return err
			}

			crashpoint.At(crashpoint.EffectPerformed)

			result.Result = &value
		}

		inLine.performed(d.place, d.id)

		u, err := record.submit(result, d, d.place)
		if err == nil {
			crashpoint.At(crashpoint.EffectRecorded)
		}

		if err != nil || u.verdict != inbox.Duplicate || skip || effect.Late == nil {
			return err
		}

		return record.late(effect.Late, result)
	}, publishes)
}

// perform calls effect.Perform and retries while the dependency is unavailable.
func perform[P event.Payload, R any](r *Router, effect Effect[P, R], e event.Event[P], d *delivery) (value R, err error) {
	needs := ""
	if effect.Needs != nil {
		needs = effect.Needs(e)
	}

	for {
		attempt, err := r.awaitDependency(d, needs)
		if err != nil {
			return value, err
		}

		err = r.bounded(func(ctx context.Context) (err error) {
			ctx, span := d.span.Effect(ctx, d.route.Consumer)
			value, err = protect(func() (R, error) { return effect.Perform(ctx, e) })
			reason, text := d.failure(err)
			span.End("", reason, text)

			return err
		})

		away, down := errors.AsType[*event.UnavailableError](err)
		later, parks := errors.AsType[*event.LaterError](err)

		switch {
		case err != nil && r.working.Err() != nil:
			attempt.Abandoned()

			return value, ErrStopping
		case parks && later.Dependency != "":
			r.blame(d, attempt, later.Dependency, err)

			return value, err
		case !down:
			attempt.Answered()

			return value, err
		}

		if err := r.retreat(d, attempt, away); err != nil {
			return value, err
		}
	}
}

// late passes a handler an event that has already been applied.
func (a *applier[E]) late(handle batchHandler[E], late E) error {
	return a.router.untilAvailable(func(ctx context.Context) error {
		return postgres.InTx(ctx, a.router.pool, func(tx pgx.Tx) error {
			writes, _, err := a.run(ctx, tx, handle, []E{late})
			if err != nil {
				return err
			}

			return tx.SendBatch(ctx, writes).Close()
		})
	})
}

// blame records a failure of a dependency, which may not be the one that attempt is for,
// and returns how long to wait before the next attempt.
func (r *Router) blame(d *delivery, attempt *breaker.Attempt, dependency string, err error) (wait time.Duration) {
	breaker := r.dependencies.Get(dependency)
	r.suspensions.need(d.route.Consumer, breaker)

	if attempt.Dependency() == dependency {
		return attempt.Failed(err)
	}

	attempt.Answered()

	return breaker.Failed(err)
}

// retreat records a failure of the unavailable dependency and waits. A message that
// would wait longer than it may, or that the broker takes back, is returned, or parked if
// it has other consumers.
func (r *Router) retreat(d *delivery, attempt *breaker.Attempt, away *event.UnavailableError) error {
	wait := r.blame(d, attempt, away.Dependency, away.Err)

	if wait > d.maxWait && r.dependencies.Get(away.Dependency).Open() {
		return ErrSuspended
	}

	ctx, cancel := context.WithCancel(r.stopping)
	defer cancel()
	defer context.AfterFunc(d.session, cancel)()

	sleep(ctx, wait)

	if d.session.Err() != nil {
		return ErrSuspended
	}

	return nil
}

// register adds a route that decodes payload type P and then calls handle. lines is nil
// if messages with the same key must be handled one at a time.
func register[P event.Payload](r *Router, consumer string, lines *lines, handle func(event.Event[P], *delivery) error, publishes []event.Payload) {
	var zero P

	r.register(Route{
		Consumer:  consumer,
		Topic:     zero.Topic(),
		Payload:   zero,
		Publishes: publishes,
		lines:     lines,
		Check: func(payload []byte) (string, error) {
			p, err := event.Decode[P](payload)

			return p.Key(), err
		},
		open: func(d *delivery) error {
			payload, err := event.Decode[P](d.msg.Payload)
			d.key = payload.Key()

			if err != nil {
				return err
			}

			e := event.Event[P]{Meta: d.meta, Payload: payload}
			d.claim = inbox.Entry{
				ID: e.ID, Fingerprint: event.Fingerprint(d.msg.Payload), Correlation: e.Correlation, Causation: e.Causation,
			}
			d.apply = func(overdue bool) error {
				e := e
				e.Overdue, e.Ahead = overdue, d.ahead

				return handle(e, d)
			}

			if d.key == "" {
				d.key = e.ID.String() // unordered
			}

			d.stored = failed.StoredKey(d.key)

			return nil
		},
	})
}

// queueOutgoing queues the write of the events that a handler returned. An undeclared topic
// or an invalid payload is the handler's failure.
func (r *Router) queueOutgoing(writes *pgx.Batch, consumer string, outgoing []event.Outgoing) error {
	declared := r.routeOf(consumer).topics

	for _, o := range outgoing {
		if topic := o.Payload.Topic(); !slices.Contains(declared, topic) {
			return fmt.Errorf("consumer %s returned an event on topic %s, which it does not declare: add %T{} to its registration",
				consumer, topic, o.Payload)
		}
	}

	if err := outbox.Queue(writes, outgoing); err != nil {
		return fmt.Errorf("consumer %s: %w", consumer, err)
	}

	return nil
}

// NewAppend returns a function that publishes events from code outside handlers. It
// refuses topics that are not in the routing table.
func NewAppend(r *Router) event.Append {
	return func(ctx context.Context, tx pgx.Tx, events []event.Outgoing) error {
		consumed, publishedOnly := r.Topics()
		known := slices.Concat(consumed, publishedOnly)

		for _, e := range events {
			if topic := e.Payload.Topic(); !slices.Contains(known, topic) {
				return event.UnknownName("topic", topic, known)
			}
		}

		return outbox.Append(ctx, tx, events)
	}
}
