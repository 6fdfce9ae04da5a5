package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/poison"
)

// gate counts the messages in hand and, once closed, lets no more in.
type gate struct {
	mu     sync.Mutex
	inHand int
	closed bool
	empty  chan struct{}
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()

	if g.closed {
		return false
	}

	g.inHand++

	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()

	g.inHand--

	if g.closed && g.inHand == 0 {
		close(g.empty)
	}
}

// close shuts the gate; the channel is closed once nothing is in hand.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()

	if !g.closed {
		g.closed = true
		g.empty = make(chan struct{})

		if g.inHand == 0 {
			close(g.empty)
		}
	}

	return g.empty
}

// delivery is what the middleware knows about a message beside the message. It
// travels in the message's context from observe inwards.
type delivery struct {
	// consumer and topic are those of the route.
	consumer, topic string
	// key orders the message, once it is decoded: as far as that was possible, if
	// its payload is at fault.
	key string
	// attempts is how often the message failed in the past, and seq its number
	// if it is parked.
	attempts int
	seq      int64
	// headers are those that came: Watermill's PoisonQueue writes into the
	// message's metadata before it publishes.
	headers event.Headers
	// err is why the last attempt failed.
	err error
	// poisoned is the reason, once the message is in the poison queue.
	poisoned event.Reason
	// parked is true once the message waits for another attempt, in wait, and
	// behind once it waits behind another.
	parked, behind bool
	wait           time.Duration
}

type deliveryKey struct{}

func deliveryOf(msg *message.Message) *delivery {
	d, _ := msg.Context().Value(deliveryKey{}).(*delivery)

	return d
}

// newDelivery reads what the middleware has to know.
func (r *Router) newDelivery(msg *message.Message) *delivery {
	d := &delivery{consumer: strings.TrimPrefix(message.HandlerNameFromCtx(msg.Context()), outbox.DirectPrefix)}
	d.topic = r.topics[d.consumer]
	d.attempts, _ = strconv.Atoi(msg.Metadata.Get(event.HeaderAttempts))
	d.seq, _ = strconv.ParseInt(msg.Metadata.Get(event.HeaderParked), 10, 64)

	return d
}

func consumerOf(msg *message.Message) string { return deliveryOf(msg).consumer }

func topicOf(msg *message.Message) string { return deliveryOf(msg).topic }

// observe is the outermost middleware: it holds the gate, measures, and logs
// the fate of each message that failed, once.
func (r *Router) observe(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if !r.gate.enter() {
			// Stopping: keep hold of it until the subscription closes, so that
			// it is not delivered again and again to a service that refuses.
			<-msg.Context().Done()

			return nil, ErrStopping
		}
		// It is in hand until the broker has its answer, which Watermill gives
		// when this has returned.
		defer func() { go r.leaveWhenAnswered(msg) }()

		d := r.newDelivery(msg)
		msg.SetContext(context.WithValue(msg.Context(), deliveryKey{}, d))

		started := time.Now()
		_, err := next(msg)
		r.report(msg, d, err, time.Since(started))

		return nil, err
	}
}

func (r *Router) leaveWhenAnswered(msg *message.Message) {
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	}

	r.gate.leave()
}

func (r *Router) report(msg *message.Message, d *delivery, err error, took time.Duration) {
	consumer, topic, outcome := d.consumer, d.topic, "applied"

	switch {
	case err != nil:
		outcome = "returned"

		if mayPoison(err) {
			r.logger.Error("message returned to the broker", slog.String("consumer", consumer),
				slog.String("message_id", msg.UUID), slog.Any("error", err))
		}
	case d.poisoned != "":
		outcome = "poisoned"

		r.metrics.poisoned.WithLabelValues(topic, string(d.poisoned)).Inc()
		r.logger.Warn("message poisoned", slog.String("consumer", consumer), slog.String("message_id", msg.UUID),
			slog.String("reason", string(d.poisoned)), slog.Any("error", d.err))
	case d.parked:
		outcome = "parked"

		r.logger.Warn("message parked", slog.String("consumer", consumer), slog.String("message_id", msg.UUID),
			slog.Int("attempts", d.attempts), slog.Duration("wait", d.wait.Round(time.Millisecond)), slog.Any("error", d.err))
	case d.behind:
		outcome = "behind"
	}

	r.metrics.messages.WithLabelValues(consumer, topic, outcome).Inc()
	r.metrics.handle.WithLabelValues(consumer).Observe(took.Seconds())
}

// detach keeps a message alive when its subscription ends under it. How long
// it may take is up to Router.working and Config.HandlerTimeout.
func detach(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		msg.SetContext(context.WithoutCancel(msg.Context()))

		return next(msg)
	}
}

// classify remembers why an attempt failed, and the headers as they came.
func classify(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		_, err := next(msg)

		if d := deliveryOf(msg); err != nil && d != nil {
			d.err = err

			if d.headers == nil {
				d.headers = maps.Clone(event.Headers(msg.Metadata))
			}
		}

		return nil, err
	}
}

// poisonPublisher is what Watermill's PoisonQueue publishes to: the table.
type poisonPublisher struct{ router *Router }

// Publish stores the messages. It tries until Postgres takes them: a message
// that is neither applied nor stored must not be acknowledged.
func (p *poisonPublisher) Publish(_ string, messages ...*message.Message) error {
	for _, msg := range messages {
		entry := entryOf(msg)

		err := p.router.untilAvailable(func(ctx context.Context) error { return p.router.poison.Add(ctx, entry) })
		if err != nil {
			return err
		}

		deliveryOf(msg).poisoned = entry.Reason
	}

	return nil
}

// Close does nothing: the store is not the publisher's.
func (*poisonPublisher) Close() error { return nil }

func entryOf(msg *message.Message) poison.Entry {
	d := deliveryOf(msg)
	headers := event.Headers{}

	for name, value := range d.headers {
		if !strings.HasPrefix(name, event.ReservedPrefix) {
			headers[name] = value
		}
	}

	return poison.Entry{
		Consumer:  d.consumer,
		Topic:     d.topic,
		MessageID: messageID(msg),
		Origin:    d.headers[event.HeaderOrigin],
		Key:       cmp.Or(d.key, d.headers[event.HeaderKey]),
		Headers:   headers,
		Payload:   msg.Payload,
		Reason:    reasonOf(d.err),
		Error:     d.err.Error(),
		Attempts:  max(d.attempts, 0),
	}
}

func reasonOf(err error) event.Reason {
	var (
		rejection *event.RejectError
		panicked  *PanicError
		recovered middleware.RecoveredPanicError
	)

	switch {
	case errors.As(err, &rejection):
		return rejection.Reason
	case errors.As(err, &panicked), errors.As(err, &recovered):
		return event.ReasonPanicked
	default:
		return event.ReasonFailed
	}
}

// messageID is the id that the broker's marshaler found, always a UUID.
func messageID(msg *message.Message) uuid.UUID {
	id, err := uuid.Parse(msg.UUID)
	if err != nil {
		return event.ForeignID("watermill", msg.UUID)
	}

	return id
}

// PanicError is a panic of a handler, as an error.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("handler panicked: %v\n%s", e.Value, e.Stack) }

// protect turns a panic of fn into an error. Batches run in goroutines of
// their own, where Watermill's Recoverer does not reach.
func protect[T any](fn func() (T, error)) (result T, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &PanicError{Value: value, Stack: debug.Stack()}
		}
	}()

	return fn()
}
