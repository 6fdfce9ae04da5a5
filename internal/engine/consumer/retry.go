package consumer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

// maxRetryInterval caps the intervals between quick tries: they hold a partition.
const maxRetryInterval = 2 * time.Second

// quickTries returns Watermill's Retry. It asks for the interval twice per attempt
// when ShouldRetry is set, so intervals grow by the square of the multiplier: 2.25.
func quickTries(p policy) middleware.Retry {
	return middleware.Retry{
		MaxRetries:          p.retries,
		InitialInterval:     p.retryInterval,
		MaxInterval:         maxRetryInterval,
		Multiplier:          1.5,
		RandomizationFactor: 0.5,
		ResetContextOnRetry: true,
		ShouldRetry: func(params middleware.RetryParams) bool {
			_, later := errors.AsType[*event.LaterError](params.Err)

			return !later && !isRejection(params.Err) && !isReturn(params.Err) && !errors.Is(params.Err, errBlocked)
		},
	}
}

const (
	// minLease is for how long a key belongs to one replica, at least.
	minLease = time.Minute
	// suspendedWait is how long a key waits whose consumer is suspended.
	suspendedWait = 5 * time.Second
	// renewAfter is how old a lease is when it is renewed between two messages.
	renewAfter = time.Second
	// keysAtOnce is how many keys of a consumer are tried at once: a slow consumer
	// leaves room for others.
	keysAtOnce = 32
)

// lease is for how long a key belongs to one replica: longer than a round of
// attempts at a message takes.
func (r *Router) lease() time.Duration {
	lease := minLease

	for _, p := range append(slices.Collect(maps.Values(r.policies)), r.cfg.retryPolicy()) {
		lease = max(lease, time.Duration(p.retries+1)*(r.cfg.HandlerTimeout+maxRetryInterval)+patienceOutbox)
	}

	return lease
}

// retryLoop tries waiting messages that are due.
type retryLoop struct {
	router *Router
	// done receives when messages are done with, so that others may be tried.
	done chan struct{}

	mu sync.Mutex
	// trying counts the keys that are being tried, by consumer.
	trying map[string]int
}

// retryWaiting tries waiting messages that are due, those of a key in order, until
// ctx ends.
func (r *Router) retryWaiting(ctx context.Context) {
	ticker := time.NewTicker(min(time.Second, max(r.cfg.ParkInterval/2, 10*time.Millisecond)))
	defer ticker.Stop()

	var running sync.WaitGroup
	defer running.Wait()

	loop := &retryLoop{router: r, done: make(chan struct{}, 1), trying: map[string]int{}}

	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-loop.done:
		}

		keys, err := loop.lease(ctx)
		if err != nil {
			// The breaker of Postgres logs why; the next round tries again.
			r.logger.Debug("could not lease waiting keys", slog.Any("error", err))
		}

		for _, key := range keys {
			running.Go(func() {
				loop.end(key, r.retryKey(ctx, key))
			})
		}
	}
}

// lease takes keys that are due. The end of ctx does not cancel it: nobody would
// try what the server has leased then.
func (l *retryLoop) lease(ctx context.Context) ([]failed.Key, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()

	room := map[string]int{}

	l.mu.Lock()

	for _, consumer := range l.router.consuming() {
		if free := keysAtOnce - l.trying[consumer]; free > 0 {
			room[consumer] = free
		}
	}

	l.mu.Unlock()

	keys, err := l.router.failed.Lease(ctx, room, l.router.lease())

	l.mu.Lock()
	defer l.mu.Unlock()

	for _, key := range keys {
		l.trying[key.Consumer]++
	}

	return keys, err
}

// end notes that a key has been tried, and how many of its messages are done with.
func (l *retryLoop) end(key failed.Key, finished int) {
	l.mu.Lock()
	l.trying[key.Consumer]--
	l.mu.Unlock()

	if finished == 0 {
		return // nothing that others wait for has changed
	}

	select {
	case l.done <- struct{}{}:
	default:
	}
}

// consuming returns the consumers that are not suspended.
func (r *Router) consuming() []string {
	suspended := r.Suspended()

	var consumers []string

	for _, route := range r.routes {
		if !slices.Contains(suspended, route.Consumer) {
			consumers = append(consumers, route.Consumer)
		}
	}

	return consumers
}

// retryKey tries the messages of a key one after the other until one has to wait
// again or none is left. It returns how many are no longer in the way of others.
func (r *Router) retryKey(ctx context.Context, key failed.Key) (finished int) {
	var last int64

	for leased := time.Now(); ; {
		head, ok, err := r.headOf(key)
		if !errors.Is(err, ErrStopping) && (err != nil || !ok || head.ID == last) {
			return finished // the key is due again when the lease ends, is free, or waits again
		}

		if err != nil || ctx.Err() != nil || head.Behind || !r.gate.enter() {
			r.postpone(ctx, key, 0)

			return finished
		}

		// The lease is long enough for one message only. If it ended, the same messages
		// would be tried more than once at the same time.
		if time.Since(leased) > renewAfter {
			r.renew(ctx, key)

			leased = time.Now()
		}

		f := r.deliver(newDelivery(r.routeOf(key.Consumer), messageOf(head.Entry), &head.Entry, false))

		if f.outcome == returned {
			r.postpone(ctx, key, waitOf(f))
		}

		r.gate.leave()

		if f.outcome == returned {
			return finished
		}

		finished++

		if f.outcome == parked {
			return finished
		}

		last = head.ID
	}
}

// waitOf is how long a key waits whose message was returned.
func waitOf(f fate) time.Duration {
	if errors.Is(f.err, ErrStopping) {
		return 0
	}

	return suspendedWait
}

// headOf returns the first message of a key. It waits for Postgres: without an
// answer the key would wait until the lease ends.
func (r *Router) headOf(key failed.Key) (head failed.Head, ok bool, err error) {
	err = r.untilAvailable(func(ctx context.Context) (err error) {
		head, ok, err = r.failed.Head(ctx, key, r.consuming())

		return err
	})

	return head, ok, err
}

// renew prolongs the lease of a key.
func (r *Router) renew(ctx context.Context, key failed.Key) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()

	if err := r.failed.Renew(ctx, key, r.lease()); err != nil {
		r.logger.Debug("could not renew the lease of a key", slog.Any("error", err))
	}
}

// postpone makes a key due after wait, also when the service stops: otherwise it
// would wait until the lease ends.
func (r *Router) postpone(ctx context.Context, key failed.Key, wait time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()

	if err := r.failed.Postpone(ctx, key, wait); err != nil {
		r.logger.Debug("could not postpone a key, which is due when its lease ends", slog.Any("error", err))
	}
}

// messageOf makes the message of a failed one. If it is applied under a new id,
// the original is its cause.
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
