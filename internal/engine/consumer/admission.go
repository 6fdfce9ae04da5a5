package consumer

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// admitFunc is the type of [Effect.Admit].
type admitFunc[P event.Payload] func(ctx context.Context, db postgres.Querier, events []event.Event[P]) ([]error, error)

// admission batches events, then asks the inbox and the handler whether their effects may
// proceed. A unit's error says why it was refused.
type admission[P event.Payload] struct {
	batches[event.Event[P]]

	admit admitFunc[P]
}

func newAdmission[P event.Payload](r *Router, consumer string, admit admitFunc[P]) *admission[P] {
	a := &admission[P]{admit: admit}
	a.batches = newBatches(r, consumer, timed(r, consumer, func(units []*unit[event.Event[P]]) []*unit[event.Event[P]] {
		a.run(units)

		return nil
	}))

	return a
}

// maxAnswerAge is how long an event may wait for the effect of the one ahead before it
// must be admitted again: its user may have been erased meanwhile.
const maxAnswerAge = time.Second

// errBehind reports that the key of a message waits, but that the message is not first in
// its line. It is not blocked until it is.
var errBehind = errors.New("the message's key is waiting, and others are ahead of it")

// inTurn submits an event and waits until its effect may be performed: it is admitted,
// and the effect of the message ahead has been performed. Any other answer counts only
// once the event is first in its line, because the fate of the message ahead may change
// it. skip is true if the event needs no effect.
func (a *admission[P]) inTurn(e event.Event[P], d *delivery, in *lines) (u *unit[event.Event[P]], skip bool, err error) {
	for waited := false; !d.place.broken(); waited = true {
		first, asked := d.place.first(), time.Now()

		u, err = a.submit(e, d, nil)
		skip = errors.Is(err, event.ErrSkip)
		proceed := (err == nil || skip) && u.verdict != inbox.Duplicate

		switch {
		case first && !proceed:
			return u, false, err
		case errors.Is(err, errBlocked): // it has been stored
			in.awaitTurn(d.place)

			return u, false, err
		case first && !waited:
		case first, proceed && in.awaitEffect(d.place, d.id):
			if err := a.mayContinue(d); err != nil {
				return u, false, err
			}

			if time.Since(asked) > maxAnswerAge {
				continue
			}
		default:
			in.awaitTurn(d.place)

			continue
		}

		if !d.place.broken() {
			return u, skip, nil
		}
	}

	return nil, false, errLineBroken
}

// mayContinue holds up a message that has waited, as if it had just arrived: its consumer
// may have been paused, or the service may be stopping.
func (a *admission[P]) mayContinue(d *delivery) error {
	if err := a.router.awaitResume(d); err != nil {
		return err
	}

	if a.router.stopping.Err() != nil {
		return ErrStopping
	}

	return nil
}

func (a *admission[P]) run(units []*unit[event.Event[P]]) {
	var known lookup

	err := a.router.untilReadable(func(ctx context.Context) (err error) {
		known, err = a.lookUp(ctx, units)

		return err
	})
	if err != nil {
		finish(units, err)

		return
	}

	var behind, rest []*unit[event.Event[P]]

	for i, u := range units {
		if known.waits(i, u.from) {
			behind = append(behind, u)
		} else {
			rest = append(rest, u)
		}
	}

	if len(behind) == 0 {
		a.answer(units, known)

		return
	}

	for _, u := range behind {
		if u.from.place.broken() {
			u.done <- errLineBroken

			continue
		}

		if !u.from.place.first() {
			u.done <- errBehind

			continue
		}

		switch blocked, err := a.block(u.from); {
		case err != nil:
			u.done <- err
		case blocked:
			u.done <- errBlocked
		default: // the key is no longer waiting
			rest = append(rest, u)
		}
	}

	if len(rest) > 0 {
		a.run(rest) // blocking may have taken a while, so known is out of date
	}
}

// lookup holds what Postgres knows about units. It is read outside a transaction, so it is
// only a hint. Record checks it again under locks.
type lookup struct {
	verdicts []inbox.Verdict
	found    map[string]bool
	decided  map[int]bool
}

// waits reports whether a unit must be blocked by the waiting messages with its key.
func (l lookup) waits(i int, d *delivery) bool {
	return l.verdicts[i] == inbox.Fresh && d.entry == nil && !l.decided[i] && l.found[d.stored]
}

func (a *admission[P]) lookUp(ctx context.Context, units []*unit[event.Event[P]]) (known lookup, err error) {
	along := &pgx.Batch{}
	known.found = failed.QueueKeys(along, a.consumer, keysOf(units))

	known.verdicts, err = inbox.Seen(ctx, a.router.pool, a.consumer, claimsOf(units), along)
	if err != nil {
		return known, err
	}

	known.decided, err = a.decided(ctx, a.router.pool, units, known.found)

	return known, err
}

// block stores a message behind the waiting ones with its key. It writes, so a server that
// allows only reads opens the breaker. blocked is false if the key is no longer
// waiting.
func (a *admission[P]) block(d *delivery) (blocked bool, err error) {
	err = a.router.untilAvailable(func(ctx context.Context) (err error) {
		blocked, err = a.router.failed.BlockAlone(ctx, d.failed(fate{}))

		return err
	})
	if blocked {
		a.router.wakeAwaiting(d.route.Topic, []string{d.stored})
	}

	return blocked, err
}

// answer asks the handler about the fresh units and completes all units.
func (a *admission[P]) answer(units []*unit[event.Event[P]], known lookup) {
	answers := make([]error, len(units))

	fresh, index, conflicts, err := a.fresh(units, known.verdicts, known.found, func(i int) (bool, error) { return known.decided[i], nil })

	for i, conflict := range conflicts {
		answers[i] = conflict
	}

	if err == nil && len(fresh) > 0 && a.admit != nil {
		err = a.router.untilReadable(func(ctx context.Context) error {
			events := slices.Clone(fresh) // Admit may add data to them

			admitted, err := protect(func() ([]error, error) { return a.admit(ctx, a.router.pool, events) })
			for i, answer := range admitted {
				answers[index[i]] = answer
				units[index[i]].event = events[i]
			}

			return err
		})
	}

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
