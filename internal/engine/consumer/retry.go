package consumer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

// maxRetryInterval caps the delay between immediate retries, which delay later messages
// with the same key.
const maxRetryInterval = 2 * time.Second

// quickRetries returns Watermill's Retry middleware. It asks for the interval twice per
// attempt if ShouldRetry is set, and waits for the second one: so the intervals start at
// the configured one divided by the multiplier, and grow by its square, 2.25.
func quickRetries(c Config) middleware.Retry {
	const multiplier = 1.5

	return middleware.Retry{
		MaxRetries:          c.Retries,
		InitialInterval:     time.Duration(float64(c.RetryInterval) / multiplier),
		MaxInterval:         maxRetryInterval,
		Multiplier:          multiplier,
		RandomizationFactor: 0.5,
		ResetContextOnRetry: true,
		ShouldRetry: func(params middleware.RetryParams) bool {
			_, later := errors.AsType[*event.LaterError](params.Err)
			_, early := errors.AsType[*event.EarlyError](params.Err)

			return !later && !early && !isRejection(params.Err) && !isReturn(params.Err) && !errors.Is(params.Err, errBlocked)
		},
	}
}

const (
	// leaseDuration is how long a key stays leased after its process has died.
	leaseDuration = 30 * time.Second
	// renewInterval is the time between renewals of all leases. A lease survives five
	// failed ones.
	renewInterval = 5 * time.Second
	// suspendedWait is how long a key waits after an error that has nothing to do with its
	// messages.
	suspendedWait = 5 * time.Second
	// retryLimit is how long the loop may take before it leases keys again.
	retryLimit = time.Minute
	// keysAtOnce limits how many keys of a consumer are retried concurrently, so that a
	// slow consumer leaves room for others.
	keysAtOnce = 32
)

// retryWaiting retries waiting messages that are due, in order per key, until ctx
// ends.
func (r *Router) retryWaiting(ctx context.Context) {
	ticker := time.NewTicker(min(time.Second, max(r.cfg.ParkInterval/2, 10*time.Millisecond)))
	defer ticker.Stop()

	var (
		running sync.WaitGroup
		held    leases
	)

	defer r.renewLeases(&held)()
	defer running.Wait()

	// room holds the number of keys of each consumer that may still be leased. A key wakes
	// the loop if any of its messages was settled, because others may be due.
	room := make(map[string]*atomic.Int64, len(r.routes))
	for _, consumer := range r.consumers() {
		room[consumer] = &atomic.Int64{}
		room[consumer].Store(keysAtOnce)
	}

	for r.Retries.Begin(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-r.due:
		}

		for _, lease := range r.leaseKeys(ctx, room) {
			held.add(lease)
			room[lease.Consumer].Add(-1)
			crashpoint.At(crashpoint.FailedLeased)
			running.Go(func() {
				finished, wait := r.retryKey(ctx, lease.Key)

				held.remove(lease)
				r.endLease(ctx, lease, wait)
				crashpoint.At(crashpoint.FailedReleased)
				room[lease.Consumer].Add(1)

				if finished > 0 {
					r.retrySoon()
				}
			})
		}
	}
}

// retrySoon makes retryWaiting look for due keys immediately.
func (r *Router) retrySoon() {
	select {
	case r.due <- struct{}{}:
	default:
	}
}

// leaseKeys leases keys that are due. It does not stop when ctx ends, because keys that
// the server had already leased would go untried. After an error the next round tries
// again.
func (r *Router) leaseKeys(ctx context.Context, room map[string]*atomic.Int64) []failed.Lease {
	free := map[string]int{}
	for _, consumer := range r.consuming() {
		free[consumer] = int(room[consumer].Load())
	}

	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()

	found, err := r.failed.Lease(bounded, free, leaseDuration)
	r.Retries.Report(err)

	return found
}

// leases are the leases that a process holds.
type leases struct {
	mu   sync.Mutex
	held []failed.Lease
}

func (l *leases) add(lease failed.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.held = append(l.held, lease)
}

func (l *leases) remove(lease failed.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.held = slices.DeleteFunc(l.held, func(other failed.Lease) bool { return other.Key == lease.Key })
}

func (l *leases) list() []failed.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()

	return slices.Clone(l.held)
}

// renewLeases renews the held leases until the returned function is called.
func (r *Router) renewLeases(held *leases) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())

	var running sync.WaitGroup

	running.Go(func() {
		for backoff.Sleep(ctx, renewInterval) == nil {
			if list := held.list(); len(list) > 0 {
				r.briefly(ctx, "could not renew leases", func(ctx context.Context) error { return r.failed.Renew(ctx, list, leaseDuration) })
			}
		}
	})

	return func() {
		cancel()
		running.Wait()
	}
}

// endLease ends the lease of a key. If wait is not 0, the key is due after wait.
func (r *Router) endLease(ctx context.Context, lease failed.Lease, wait time.Duration) {
	r.briefly(ctx, "could not end the lease of a key", func(ctx context.Context) error { return r.failed.EndLease(ctx, lease, wait) })
}

// retryKey retries the messages of a leased key in order until one is parked again or none
// is left. It continues past a message that awaits another one on its own topic, because
// the other one may be behind it. It returns the number of messages settled or parked, and
// how long the key has to wait if its message was returned.
func (r *Router) retryKey(ctx context.Context, key failed.Key) (finished int, wait time.Duration) {
	var last, after int64

	for {
		head, ok, err := r.headOf(key, after)

		switch {
		case err != nil:
			return finished, waitAfter(err)
		case !ok || head.ID == last || head.Behind || ctx.Err() != nil || !r.gate.enter():
			return finished, 0
		}

		f := r.retry(key, head, after > 0)
		if f.outcome == returned {
			return finished, waitAfter(f.err)
		}

		finished++

		crashpoint.At(crashpoint.FailedTried)

		switch {
		case f.outcome != parked:
			last, after = head.ID, 0
		case slices.Contains(f.awaits, head.Topic):
			after = head.ID
		default:
			return finished, 0
		}
	}
}

// retry tries a message of a leased key. If ahead is true, the message is behind the
// first one.
func (r *Router) retry(key failed.Key, head failed.Head, ahead bool) fate {
	defer r.gate.leave()

	d := r.newDelivery(context.Background(), r.routeOf(key.Consumer), messageOf(head.Entry), &head.Entry, false)
	d.waited, d.ahead = head.Awaited, ahead

	return r.deliver(d)
}

// waitAfter returns how long a key waits after an error that has nothing to do with its
// messages.
func waitAfter(err error) time.Duration {
	if errors.Is(err, ErrStopping) {
		return 0
	}

	return suspendedWait
}

// headOf returns the first message of a key after the given ID. It waits until Postgres
// answers, or returns ErrStopping.
func (r *Router) headOf(key failed.Key, after int64) (head failed.Head, ok bool, err error) {
	err = r.untilReadable(func(ctx context.Context) (err error) {
		head, ok, err = r.failed.Head(ctx, key, after, r.consuming())

		return err
	})

	return head, ok, err
}

// briefly runs a short statement, even if the service is stopping.
func (r *Router) briefly(ctx context.Context, failure string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()

	if err := run(ctx); err != nil {
		r.logger.Debug(failure, slog.Any("error", err))
	}
}

// messageOf builds the message of a failed entry. If it is applied under a new ID,
// the original message is its cause.
func messageOf(e failed.Entry) *message.Message {
	msg := message.NewMessage(e.ApplyID().String(), e.Current())

	maps.Copy(msg.Metadata, e.Headers)

	msg.Metadata[event.HeaderOrigin] = e.Origin

	if e.AppliedAs != nil {
		meta := event.MetaOf(e.MessageID, e.Headers)
		msg.Metadata[event.HeaderCorrelation] = meta.Correlation.String()
		msg.Metadata[event.HeaderCausation] = e.MessageID.String()
	}

	return msg
}
