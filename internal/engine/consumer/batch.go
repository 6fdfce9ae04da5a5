package consumer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/span"
)

// ErrStopping aborts work on a message because the service is stopping. The message
// is not acknowledged and will be redelivered.
var ErrStopping = errors.New("the service is stopping")

// unit is a message in a batch. E is the type that the handler receives.
type unit[E any] struct {
	event E
	from  *delivery
	// place is the unit's place in its line, or nil if its batches are in no order.
	place *place
	since time.Time
	// verdict is the inbox's verdict on the message.
	verdict inbox.Verdict
	// blocked is true if the message is blocked by an earlier one with its key.
	blocked bool
	// done receives exactly one value: nil once the message has been applied.
	done chan error
}

func (u *unit[E]) key() string      { return u.from.key }
func (u *unit[E]) standing() *place { return u.place }

// settle gives the unit its result. If the result is final, the units behind this one may
// continue immediately.
func (u *unit[E]) settle(err error) {
	if u.place != nil && err != nil {
		u.place.performed.Store(false)
	}

	if u.place != nil && (err == nil || errors.Is(err, errBlocked)) {
		u.place.over.Store(true)
	}

	u.done <- err
}

// batches groups the units of one consumer.
type batches[E any] struct {
	router   *Router
	consumer string
	group    *group[*unit[E]]
}

func newBatches[E any](r *Router, consumer string, run func(units []*unit[E]) (behind []*unit[E])) batches[E] {
	return batches[E]{router: r, consumer: consumer, group: newGroup(r.cfg.MaxBatch, r.cfg.ConcurrentBatches, r.turns, run)}
}

// timed wraps run and measures how long units wait for it.
func timed[E any](r *Router, consumer string, run func(units []*unit[E]) (behind []*unit[E])) func(units []*unit[E]) (behind []*unit[E]) {
	waited := r.metrics.batchWait.WithLabelValues(consumer)

	return func(units []*unit[E]) []*unit[E] {
		for _, u := range units {
			waited.Observe(time.Since(u.since).Seconds())
		}

		behind := run(units)
		for _, u := range behind {
			u.since = time.Now() // it waits again
		}

		return behind
	}
}

// submit adds an event to the next batch and waits for its result.
func (b batches[E]) submit(event E, from *delivery, at *place) (*unit[E], error) {
	u := &unit[E]{event: event, from: from, place: at, since: time.Now(), done: make(chan error, 1)}
	b.group.add(u)

	return u, <-u.done
}

// fresh returns the events to apply and the index of each in units. It calls block
// for units that are retried or whose key has failed messages (see failed.QueueKeys).
// block reports whether the unit is now blocked.
func (b batches[E]) fresh(units []*unit[E], verdicts []inbox.Verdict, found map[string]bool, block func(i int) (bool, error),
) (fresh []E, index []int, conflicts event.RejectSome, err error) {
	conflicts = event.RejectSome{}
	// blocked has the fingerprints of the blocked units.
	blocked := map[uuid.UUID][]int64{}

	for i, u := range units {
		// A repeat of a blocked unit has not been applied either. If its payload differs, it
		// must also be stored.
		u.blocked, u.verdict = slices.Contains(blocked[u.from.id], u.from.claim.Fingerprint), verdicts[i]
		isNew := u.verdict == inbox.Fresh || len(blocked[u.from.id]) > 0

		if !u.blocked && isNew && u.mayBeBlocked(found) {
			if u.blocked, err = block(i); err != nil {
				return nil, nil, nil, err
			}
		}

		switch {
		case u.blocked:
			blocked[u.from.id] = append(blocked[u.from.id], u.from.claim.Fingerprint)
		case u.verdict == inbox.Fresh:
			fresh, index = append(fresh, u.event), append(index, i)
		case u.verdict == inbox.Conflict:
			conflicts[i] = inbox.ErrConflict
		default:
			b.router.metrics.duplicates.WithLabelValues(b.consumer).Inc()
		}
	}

	return fresh, index, conflicts, nil
}

// mayBeBlocked reports whether the unit is retried or its key has failed messages.
func (u *unit[E]) mayBeBlocked(found map[string]bool) bool {
	if u.from.entry != nil {
		return true
	}

	if len(found) == 0 {
		return false
	}

	_, is := found[u.from.stored]

	return is
}

// decided returns the units that an operator's decision prevents from being applied; see
// failed.Decided.
func (b batches[E]) decided(ctx context.Context, db postgres.Querier, units []*unit[E], found map[string]bool) (map[int]bool, error) {
	if !slices.ContainsFunc(units, func(u *unit[E]) bool { return u.mayBeBlocked(found) }) {
		return nil, nil //nolint:nilnil // a nil map has no units
	}

	return failed.Decided(ctx, db, b.consumer, postgres.Column(units, (*unit[E]).delivery))
}

func (u *unit[E]) delivery() failed.Delivery {
	d := failed.Delivery{MessageID: u.from.id, Fingerprint: u.from.claim.Fingerprint, Key: u.from.stored, Ahead: u.from.ahead}
	if u.from.entry != nil {
		d.EntryID, d.Revision = u.from.entry.ID, u.from.entry.Revision
	}

	return d
}

func claimsOf[E any](units []*unit[E]) []inbox.Entry {
	return postgres.Column(units, func(u *unit[E]) inbox.Entry { return u.from.claim })
}

func keysOf[E any](units []*unit[E]) []string {
	return postgres.Column(units, func(u *unit[E]) string { return u.from.stored })
}

// batchHandler applies events in a transaction and returns the events to publish.
type batchHandler[E any] func(ctx context.Context, tx pgx.Tx, events []E) ([]event.Outgoing, error)

// applier applies the batches of one consumer.
type applier[E any] struct {
	batches[E]

	handle batchHandler[E]
	// repeats is the last time that a claim of new messages found one that was not new.
	repeats atomic.Int64 // nanoseconds since 1970
}

func newApplier[E any](r *Router, consumer string, handle batchHandler[E]) *applier[E] {
	a := &applier[E]{handle: handle}
	a.batches = newBatches(r, consumer, timed(r, consumer, a.apply))

	return a
}

// apply completes the units, except those that it returns. These are behind a failed unit
// in their line and must wait until the failed one's fate is decided.
func (a *applier[E]) apply(units []*unit[E]) (behind []*unit[E]) {
	if !a.group.performed {
		units = returnBroken(units)
	}

	if len(units) == 0 {
		return nil
	}

	err := a.router.untilAvailable(func(ctx context.Context) error { return a.transact(ctx, units) })

	var rejected event.RejectSome

	switch {
	case err == nil:
		finish(units, nil)
	case errors.Is(err, ErrStopping):
		finish(units, err)
	case errors.As(err, &rejected):
		return a.reject(units, rejected)
	case len(units) == 1:
		finish(units, err)
	default:
		return a.applyEach(units)
	}

	return nil
}

// returnBroken returns the units of broken lines to their broker. left holds the others.
func returnBroken[E any](units []*unit[E]) (left []*unit[E]) {
	if !slices.ContainsFunc(units, func(u *unit[E]) bool { return u.place.broken() }) {
		return units
	}

	for _, u := range units {
		if u.place.broken() {
			u.settle(errLineBroken)
		} else {
			left = append(left, u)
		}
	}

	return left
}

// applyEach runs each unit in its own transaction, in order, because one of them made the
// batch fail.
func (a *applier[E]) applyEach(units []*unit[E]) (behind []*unit[E]) {
	for i, u := range units {
		if u.place.first() {
			a.apply(units[i : i+1])
		} else {
			behind = append(behind, u)
		}
	}

	return behind
}

// reject completes the rejected units that are first in their lines. Units that are
// neither rejected nor behind a rejected one are run together again. A rejected unit
// behind others in its line is judged again once their fates are decided, because they
// may yet fail.
func (a *applier[E]) reject(units []*unit[E], rejected event.RejectSome) (behind []*unit[E]) {
	rest := make([]*unit[E], 0, len(units))

	var wrong []int

	for i, u := range units {
		switch {
		case slices.ContainsFunc(wrong, func(w int) bool { return u.place.behind(units[w].place) }):
			behind = append(behind, u)
		case rejected[i] != nil:
			wrong = append(wrong, i)
		default:
			rest = append(rest, u)
		}
	}

	if len(wrong) == 0 { // indexes outside the batch: a handler bug
		finish(rest, errors.New("handler rejected events that are not in its batch"))

		return nil
	}

	for _, i := range wrong {
		if u := units[i]; u.place.first() {
			u.settle(rejected[i])
		} else {
			behind = append(behind, u)
		}
	}

	return append(behind, a.apply(rest)...)
}

func finish[E any](units []*unit[E], err error) {
	for _, u := range units {
		if err == nil && u.blocked {
			u.settle(errBlocked)
		} else {
			u.settle(err)
		}
	}
}

// transact claims the units, applies the fresh ones and commits.
func (a *applier[E]) transact(ctx context.Context, units []*unit[E]) error {
	started := time.Now()
	repeated := started.Sub(time.Unix(0, a.repeats.Load())) < expectRepeats

	spans := a.router.tracer.Transact(a.consumer, postgres.Column(units, func(u *unit[E]) *span.Span { return u.from.span }))

	caused, err := a.attempt(ctx, units, repeated)
	if errors.Is(err, inbox.ErrClaimed) {
		a.repeats.Store(started.UnixNano())

		caused, err = a.attempt(ctx, units, true)
	}

	spans.End(err != nil)

	if err != nil {
		return err
	}

	crashpoint.At(crashpoint.Committed)

	if caused > 0 {
		a.router.relay.Wake()
	}

	a.router.wakeAwaiting(units[0].from.route.Topic, keysOf(units))

	a.router.metrics.batchSize.WithLabelValues(a.consumer).Observe(float64(len(units)))
	a.router.metrics.batchSeconds.WithLabelValues(a.consumer).Observe(time.Since(started).Seconds())

	return nil
}

// expectRepeats is how long claims expect repeated messages after a claim has found one:
// a broker that redelivers one message redelivers many.
const expectRepeats = time.Minute

// attempt does the work of transact in one transaction. It returns inbox.ErrClaimed if
// repeated is false and a unit had already been claimed.
func (a *applier[E]) attempt(ctx context.Context, units []*unit[E], repeated bool) (caused int, err error) {
	first := &pgx.Batch{}
	claimed := a.claim(first, units, repeated)

	err = postgres.InPipeline(ctx, a.router.pool, first, func(tx pgx.Tx) (last *pgx.Batch, err error) {
		fresh, index, err := a.admit(ctx, tx, units, claimed)
		if err != nil || len(fresh) == 0 {
			return nil, err
		}

		crashpoint.At(crashpoint.Claimed)

		last, caused, err = a.run(ctx, tx, a.handle, fresh)

		if err == nil {
			crashpoint.At(crashpoint.Committing)
		}

		return last, reindex(err, index)
	})

	return caused, err
}

// run calls a handler and queues the write of the events that it returns.
func (a *applier[E]) run(ctx context.Context, tx pgx.Tx, handle batchHandler[E], events []E) (writes *pgx.Batch, caused int, err error) {
	outgoing, err := protect(func() ([]event.Outgoing, error) { return handle(ctx, tx, events) })
	if err != nil {
		return nil, 0, err
	}

	crashpoint.At(crashpoint.Handled)

	writes = &pgx.Batch{}

	return writes, len(outgoing), a.router.queueOutgoing(writes, a.consumer, outgoing)
}

// claimed is what the first statements of a transaction find.
type claimed struct {
	// repeated is nil if all messages must be new.
	repeated *inbox.Claims
	// found has the keys with failed messages; see failed.QueueKeys.
	found map[string]bool
}

// claim queues the first statements of a transaction that applies units.
func (a *applier[E]) claim(first *pgx.Batch, units []*unit[E], repeated bool) claimed {
	c := claimed{found: failed.QueueKeys(first, a.consumer, keysOf(units))}

	if repeated {
		c.repeated = inbox.Claim(first, a.consumer, claimsOf(units))
	} else {
		inbox.ClaimNew(first, a.consumer, claimsOf(units))
	}

	return c
}

// admit blocks those of the claimed units whose key is waiting. It returns the events to
// apply and the index of each in units.
func (a *applier[E]) admit(ctx context.Context, tx pgx.Tx, units []*unit[E], c claimed) (fresh []E, index []int, err error) {
	found, verdicts := c.found, make([]inbox.Verdict, len(units)) // fresh

	if c.repeated != nil {
		if verdicts, err = c.repeated.Verdicts(ctx, tx); err != nil {
			return nil, nil, err
		}
	}

	decided := map[int]bool{}

	if !a.group.performed { // otherwise the effects are recorded, whatever operators have decided since
		if decided, err = a.decided(ctx, tx, units, found); err != nil {
			return nil, nil, err
		}
	}

	var (
		behind []*unit[E]
		stored []failed.Entry
	)

	fresh, index, conflicts, err := a.fresh(units, verdicts, found, func(i int) (bool, error) {
		u := units[i]

		waits := u.from.entry == nil && found[u.from.stored]
		if waits {
			stored = append(stored, u.from.failed(fate{}))
		}

		if waits || decided[i] {
			behind = append(behind, u)
		}

		return waits || decided[i], nil
	})
	if err := errors.Join(err, conflicts.Err()); err != nil || len(found)+len(behind) == 0 {
		return fresh, index, err
	}

	if err := a.overtake(ctx, tx, units, index, found); err != nil || len(behind) == 0 {
		return fresh, index, err
	}

	if err := inbox.Unclaim(ctx, tx, a.consumer, claimsOf(behind)); err != nil {
		return nil, nil, err
	}

	err = a.router.failed.Block(ctx, tx, stored)

	crashpoint.At(crashpoint.FailedBlocked)

	return fresh, index, err
}

// overtake records which of the units to be applied overtake stopped messages with their
// keys.
func (a *applier[E]) overtake(ctx context.Context, tx pgx.Tx, units []*unit[E], index []int, found map[string]bool) error {
	var list []failed.Delivery

	for _, i := range index {
		d := units[i].delivery()
		if _, is := found[d.Key]; is {
			list = append(list, d)
		}
	}

	if len(list) == 0 {
		return nil
	}

	return failed.Overtake(ctx, tx, a.consumer, list)
}

// reindex translates the indexes of a handler's rejections from the fresh events to
// the whole batch.
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

// untilAvailable repeats attempt while Postgres is unavailable, because an infrastructure
// failure is never a message's fault. It returns ErrStopping if the service stops.
func (r *Router) untilAvailable(attempt func(ctx context.Context) error) error {
	return r.until(r.postgres.Wait, attempt)
}

// untilReadable is untilAvailable for an attempt that only reads.
func (r *Router) untilReadable(attempt func(ctx context.Context) error) error {
	return r.until(r.postgres.WaitToRead, attempt)
}

func (r *Router) until(wait func(context.Context) (*breaker.Attempt, error), attempt func(ctx context.Context) error) error {
	for contention := 0; ; {
		permit, err := wait(r.working)
		if err != nil {
			return ErrStopping
		}

		err = r.bounded(attempt)

		switch {
		case err == nil:
			permit.Answered()

			return nil
		case r.working.Err() != nil:
			permit.Abandoned()

			return ErrStopping
		case !postgres.IsUnavailable(err): // the attempt may have failed before it wrote anything
			permit.Abandoned()

			return err
		case postgres.IsContention(err):
			permit.Abandoned()
			sleep(r.working, rand.N(minContention<<min(contention, 6)))
			contention++
		default:
			sleep(r.working, permit.Failed(err))
		}

		r.metrics.unavailable.Inc()
	}
}

// minContention is the minimum wait after transactions collide for the first time.
const minContention = 20 * time.Millisecond

func (r *Router) bounded(attempt func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(r.working, r.cfg.HandlerTimeout)
	defer cancel()

	return attempt(ctx)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) { _ = backoff.Sleep(ctx, d) }
