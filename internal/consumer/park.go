package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/outbox"
	"github.com/millrace/millrace/internal/parked"
)

// errWaits says of a message that it was put behind others of its key.
var errWaits = errors.New("the message waits behind others of its key")

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

// Timings of the attempts at parked messages.
const (
	// lease is for how long a key is one replica's.
	lease = time.Minute
	// heldPause is how long a key waits whose consumer is held.
	heldPause = 5 * time.Second
	// attemptsAtOnce is how many keys are tried at once.
	attemptsAtOnce = 64
)

// RetryParked tries parked messages that are due, each key's in order, until
// ctx ends. It publishes them to outbox.Direct(consumer).
func (r *Router) RetryParked(ctx context.Context, publisher message.Publisher) {
	ticker := time.NewTicker(min(time.Second, max(r.cfg.ParkInterval/2, 10*time.Millisecond)))
	defer ticker.Stop()

	var (
		trying sync.WaitGroup
		places = make(chan struct{}, attemptsAtOnce)
	)
	defer trying.Wait()

	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}

		for free := cap(places) - len(places); free > 0 && ctx.Err() == nil; free = cap(places) - len(places) {
			keys, err := r.parked.Lease(ctx, free, lease, r.Held())
			if err != nil {
				// The breaker tells about Postgres; here it is tried again anyway.
				r.logger.Debug("could not look for parked messages", slog.Any("error", err))
			}

			for _, key := range keys {
				places <- struct{}{}

				trying.Go(func() {
					r.retryKey(ctx, publisher, key)
					<-places
				})
			}

			if len(keys) < free {
				break
			}
		}
	}
}

// retryKey tries the messages of a key one after the other until one has to
// wait again or none is left.
func (r *Router) retryKey(ctx context.Context, publisher message.Publisher, key parked.Key) {
	var last int64

	for ctx.Err() == nil {
		m, ok, err := r.parked.Head(ctx, key)
		if err != nil || !ok || m.Seq == last {
			return // it waits again, or is due again when the lease ends
		}

		last = m.Seq

		if err := publisher.Publish(outbox.Direct(m.Consumer), resumed(m)); err != nil {
			_ = r.parked.Postpone(ctx, key, heldPause)

			return
		}
	}

	_ = r.parked.Postpone(context.WithoutCancel(ctx), key, 0)
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
