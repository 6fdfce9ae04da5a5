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

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

// maxRetryInterval caps the delay between immediate retries, which delay later messages of
// the key.
const maxRetryInterval = 2 * time.Second

// quickRetries returns Watermill's Retry. It asks for the interval twice per attempt if
// ShouldRetry is set, so intervals grow by the square of the multiplier: 2.25.
func quickRetries(c Config) middleware.Retry {
	return middleware.Retry{
		MaxRetries:          c.Retries,
		InitialInterval:     c.RetryInterval,
		MaxInterval:         maxRetryInterval,
		Multiplier:          1.5,
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
	// minLease is the minimum duration of a key's lease.
	minLease = time.Minute
	// suspendedWait is how long a key waits while its consumer is suspended.
	suspendedWait = 5 * time.Second
	// renewAfter is the age at which a lease is renewed between two messages.
	renewAfter = time.Second
	// retryLimit is how long the loop may take until it leases keys again.
	retryLimit = time.Minute
	// keysAtOnce limits the keys of a consumer retried at once, so that a slow
	// consumer leaves room for others.
	keysAtOnce = 32
)

// lease returns how long a replica owns a key: longer than one round of attempts at a
// message.
func (r *Router) lease() time.Duration {
	lease := minLease

	for _, c := range append(slices.Collect(maps.Values(r.perTopic)), r.cfg) {
		lease = max(lease, time.Duration(c.Retries+1)*(c.HandlerTimeout+maxRetryInterval)+maxWaitOutbox)
	}

	return lease
}

// retryWaiting retries waiting messages that are due, in order per key, until ctx
// ends.
func (r *Router) retryWaiting(ctx context.Context) {
	ticker := time.NewTicker(min(time.Second, max(r.cfg.ParkInterval/2, 10*time.Millisecond)))
	defer ticker.Stop()

	var running sync.WaitGroup
	defer running.Wait()

	// room is how many more keys of each consumer may be retried. A key wakes the loop
	// if any of its messages was settled, because others may be due.
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

		for _, key := range r.leaseKeys(ctx, room) {
			room[key.Consumer].Add(-1)
			running.Go(func() {
				finished := r.retryKey(ctx, key)
				room[key.Consumer].Add(1)

				if finished > 0 {
					r.retrySoon()
				}
			})
		}
	}
}

// retrySoon makes retryWaiting look for due keys now.
func (r *Router) retrySoon() {
	select {
	case r.due <- struct{}{}:
	default:
	}
}

// leaseKeys leases keys that are due. It does not stop when ctx ends, because keys that
// the server had already leased would go untried. After an error the next round tries
// again.
func (r *Router) leaseKeys(ctx context.Context, room map[string]*atomic.Int64) []failed.Key {
	free := map[string]int{}
	for _, consumer := range r.consuming() {
		free[consumer] = int(room[consumer].Load())
	}

	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()

	keys, err := r.failed.Lease(bounded, free, r.lease())
	r.Retries.Report(err)

	return keys
}

// retryKey retries the messages of a key in order until one is parked again or none is
// left. It continues past a message that awaits another one on its own topic, because the
// other one may be behind it. It returns how many messages were settled or parked.
func (r *Router) retryKey(ctx context.Context, key failed.Key) (finished int) {
	var (
		last, after int64
		f           fate
		due         time.Time // when the first message is due again, while those behind it are tried
		leased      = time.Now()
	)

	defer func() {
		if after > 0 && !leased.IsZero() {
			r.renew(ctx, key, time.Until(due))
		}
	}()

	for {
		head, ok, err := r.headOf(key, after)
		if isOver(head, ok, err, last, f) {
			return finished
		}

		if errors.Join(err, ctx.Err()) != nil || head.ID == last || head.Behind || !r.gate.enter() {
			r.postpone(ctx, key, 0)

			return finished
		}

		// The lease covers one message only. If it expired, another replica could
		// retry the same messages concurrently.
		if time.Since(leased) > renewAfter {
			r.renew(ctx, key, r.lease())

			leased = time.Now()
		}

		f = r.retry(ctx, key, head, after > 0)
		if f.outcome == returned {
			return finished
		}

		finished++

		switch {
		case f.outcome != parked:
			last, after = head.ID, 0
		case slices.Contains(f.awaits, head.Topic):
			if after == 0 { // parking the first message ended the lease
				due, leased = time.Now().Add(f.wait), time.Time{}
			}

			after = head.ID
		default:
			return finished
		}
	}
}

// retry tries a message of a leased key. If ahead is true, the message is behind the
// first one.
func (r *Router) retry(ctx context.Context, key failed.Key, head failed.Head, ahead bool) fate {
	defer r.gate.leave()

	d := r.newDelivery(context.Background(), r.routeOf(key.Consumer), messageOf(head.Entry), &head.Entry, false)
	d.waited, d.ahead = head.Awaited, ahead

	f := r.deliver(d)
	if f.outcome == returned {
		r.postpone(ctx, key, waitOf(f))
	}

	return f
}

// isOver reports whether nothing is left to do for a key: the lease will expire, the
// key is free, or the message that was tried last waits again. If that message changed
// during its attempt, the attempt had no effect and the message is due at once.
func isOver(head failed.Head, ok bool, err error, last int64, f fate) bool {
	switch {
	case errors.Is(err, ErrStopping):
		return false
	case err != nil || !ok:
		return true
	default:
		return head.ID == last && f.outcome != blocked
	}
}

// waitOf returns how long a key waits after its message was returned.
func waitOf(f fate) time.Duration {
	if errors.Is(f.err, ErrStopping) {
		return 0
	}

	return suspendedWait
}

// headOf returns the first message of a key after the given ID. It waits for Postgres:
// if it gave up, the key would wait until the lease expires.
func (r *Router) headOf(key failed.Key, after int64) (head failed.Head, ok bool, err error) {
	err = r.untilReadable(func(ctx context.Context) (err error) {
		head, ok, err = r.failed.Head(ctx, key, after, r.consuming())

		return err
	})

	return head, ok, err
}

// renew makes the lease of a key end after the given time, unless the key is due.
func (r *Router) renew(ctx context.Context, key failed.Key, lease time.Duration) {
	r.briefly(ctx, "could not renew the lease of a key", func(ctx context.Context) error { return r.failed.Renew(ctx, key, lease) })
}

// postpone makes a key due after wait instead of when its lease expires.
func (r *Router) postpone(ctx context.Context, key failed.Key, wait time.Duration) {
	r.briefly(ctx, "could not postpone a key", func(ctx context.Context) error { return r.failed.Postpone(ctx, key, wait) })
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
