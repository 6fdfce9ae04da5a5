package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/parked"
)

// errBehind says of a message that it waits behind others of its key.
var errBehind = errors.New("the message waits behind others of its key")

// park is the middleware outside retry: what still fails waits in Postgres for
// another attempt, and its delivery is acknowledged. After the last attempt it
// is left to the poison queue.
func (r *Router) park(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		_, err := next(msg)
		if err == nil || !mayPoison(err) {
			return nil, err
		}

		d := deliveryOf(msg)
		d.attempts++

		if isRejection(err) {
			return nil, err
		}

		policy := r.policyOf(topicOf(msg))
		if d.attempts > policy.parkAttempts {
			if policy.parkAttempts > 0 {
				d.err = event.RejectAs(reasonOf(d.err), fmt.Errorf("given up after %d attempts: %w", d.attempts, d.err))
			}

			return nil, err
		}

		var asked time.Duration
		if later, ok := errors.AsType[*event.LaterError](err); ok {
			asked = later.After
		}

		waiting := parkedOf(msg)
		waiting.Error = err.Error()
		wait := policy.wait(d.attempts, asked)

		err = r.untilAvailable(func(ctx context.Context) error { return r.parked.Park(ctx, waiting, wait) })
		if err != nil {
			return nil, err
		}

		d.parked = true
		d.wait = wait

		return nil, nil
	}
}

// settle is the middleware outside the poison queue: a parked message that was
// applied or poisoned has waited long enough.
func (r *Router) settle(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		_, err := next(msg)

		if d := deliveryOf(msg); err == nil && d.seq != 0 && !d.parked {
			err = r.untilAvailable(func(ctx context.Context) error { return r.parked.Finish(ctx, d.seq) })
		}

		return nil, err
	}
}

// parkedOf returns a message as it is parked, without an error.
func parkedOf(msg *message.Message) parked.Message {
	d := deliveryOf(msg)
	headers := maps.Clone(event.Headers(msg.Metadata))
	maps.DeleteFunc(headers, func(name, _ string) bool { return strings.HasPrefix(name, event.ReservedPrefix) })

	return parked.Message{
		Seq: d.seq, Consumer: d.consumer, Topic: d.topic, Key: d.key, MessageID: messageID(msg),
		Fingerprint: event.Fingerprint(msg.Payload), Origin: msg.Metadata.Get(event.HeaderOrigin),
		Headers: headers, Payload: msg.Payload, Attempts: d.attempts,
	}
}

const (
	// minLease is for how long a key is one replica's, at least.
	minLease = time.Minute
	// heldPause is how long a key waits whose consumer is held.
	heldPause = 5 * time.Second
	// attemptsAtOnce is how many keys of a consumer are tried at once: a slow
	// one leaves room to the others.
	attemptsAtOnce = 32
)

// lease is for how long a key is one replica's: longer than a round of
// attempts at a message takes.
func (r *Router) lease() time.Duration {
	lease := minLease

	for _, p := range append(slices.Collect(maps.Values(r.policies)), r.cfg.retryPolicy()) {
		lease = max(lease, time.Duration(p.retries+1)*(r.cfg.HandlerTimeout+maxRetryInterval)+patienceOutbox)
	}

	return lease
}

// places counts the keys that are tried, by consumer.
type places struct {
	mu    sync.Mutex
	taken map[string]int
}

func (p *places) add(consumer string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.taken[consumer] += n
}

// room returns how many more keys of each consumer may be tried.
func (p *places) room(consumers []string) map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()

	room := make(map[string]int, len(consumers))

	for _, consumer := range consumers {
		if free := attemptsAtOnce - p.taken[consumer]; free > 0 {
			room[consumer] = free
		}
	}

	return room
}

// RetryParked tries parked messages that are due, each key's in order, until
// ctx ends. It publishes them to outbox.Direct(consumer).
func (r *Router) RetryParked(ctx context.Context, publisher message.Publisher) {
	ticker := time.NewTicker(min(time.Second, max(r.cfg.ParkInterval/2, 10*time.Millisecond)))
	defer ticker.Stop()

	var (
		trying sync.WaitGroup
		taken  = &places{taken: map[string]int{}}
	)
	defer trying.Wait()

	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}

		keys, err := r.leaseKeys(ctx, taken)
		if err != nil {
			// The breaker tells about Postgres; here it is tried again anyway.
			r.logger.Debug("could not look for parked messages", slog.Any("error", err))
		}

		for _, key := range keys {
			taken.add(key.Consumer, 1)

			trying.Go(func() {
				r.retryKey(ctx, publisher, key)
				taken.add(key.Consumer, -1)
			})
		}
	}
}

// leaseKeys takes keys that are due. It is not broken off at the end of ctx: what
// the server has leased then would wait for nobody.
func (r *Router) leaseKeys(ctx context.Context, taken *places) ([]parked.Key, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()

	return r.parked.Lease(ctx, taken.room(r.flowing()), r.lease())
}

// flowing returns the consumers that are not held.
func (r *Router) flowing() []string {
	held := r.Held()

	var consumers []string

	for _, route := range r.routes {
		if !slices.Contains(held, route.Consumer) {
			consumers = append(consumers, route.Consumer)
		}
	}

	return consumers
}

// retryKey tries the messages of a key one after the other until one has to
// wait again or none is left.
func (r *Router) retryKey(ctx context.Context, publisher message.Publisher, key parked.Key) {
	var last int64

	// What is given back is given back at the end of ctx too: else the key would
	// wait until the lease ends.
	after := context.WithoutCancel(ctx)

	for {
		m, ok, err := r.parked.Head(after, key)

		switch {
		case err != nil || !ok || m.Seq == last:
			return // it is due again when the lease ends, is free, or waits again
		case ctx.Err() != nil:
			_ = r.parked.Postpone(after, key, 0)

			return
		}

		last = m.Seq

		if err := publisher.Publish(outbox.Direct(m.Consumer), resumed(m)); err != nil {
			_ = r.parked.Postpone(after, key, heldPause)

			return
		}
	}
}

// resumed makes the message of a parked one.
func resumed(m parked.Message) *message.Message {
	msg := message.NewMessage(m.MessageID.String(), m.Payload)
	msg.Metadata = message.Metadata(maps.Clone(m.Headers))

	if msg.Metadata == nil {
		msg.Metadata = message.Metadata{}
	}

	msg.Metadata[event.HeaderKey] = m.Key
	msg.Metadata[event.HeaderOrigin] = m.Origin
	msg.Metadata[event.HeaderAttempts] = strconv.Itoa(m.Attempts)
	msg.Metadata[event.HeaderParked] = strconv.FormatInt(m.Seq, 10)

	return msg
}
