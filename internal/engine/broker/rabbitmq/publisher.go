package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

// confirmTimeout is how long a message waits for its confirmation.
const confirmTimeout = 15 * time.Second

// publisher publishes on one channel. Confirmations arrive asynchronously, so a
// message whose queue does not confirm delays no other.
type publisher struct {
	driver *Driver

	mu     sync.Mutex
	outlet *outlet
}

// Publish implements message.Publisher. It returns nil when the broker has confirmed
// all messages and each has reached a queue.
func (p *publisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		if err := p.publish(msg.Context(), topic, Marshal(msg)); err != nil {
			return err
		}
	}

	return nil
}

// Close implements message.Publisher. The driver closes the connection.
func (p *publisher) Close() error { return nil }

// attempts is the number of times to send a message that fails because of another
// message, or for a reason that we can correct.
const attempts = 3

// publish sends one message. It creates the exchange and the queue again if they were
// deleted.
func (p *publisher) publish(ctx context.Context, topic string, msg amqp091.Publishing) (err error) {
	for range attempts {
		var out *outlet

		if out, err = p.open(ctx); err != nil {
			return err
		}

		if err = sendable(topic, msg, out.live.largest()); err != nil {
			return err
		}

		err = out.send(p.driver.cfg.Exchange, topic, msg)

		switch {
		case err == nil:
			return nil
		case errors.Is(err, errUnroutable), answered(err, amqp091.NotFound):
			if err := p.driver.restore(ctx, topic); err != nil {
				return err
			}
		case out.live.learnLimit(err): // this message or another on the channel was too large
		default:
			return sorted(err, topic, "allow the account to write to exchange "+p.driver.cfg.Exchange)
		}
	}

	if errors.Is(err, errUnroutable) {
		return &driver.RefusedError{
			Scope: driver.OneTopic, Topic: topic, Err: err,
			Remedy: "bind a queue to exchange " + p.driver.cfg.Exchange + " with the routing key " + topic,
		}
	}

	return err
}

// tooLarge matches the answer to a message above max_message_size.
var tooLarge = regexp.MustCompile(`message size \d+.* larger than .*max size (\d+)`)

// limit is the learned size in bytes of the largest message, or 0.
type limit struct {
	bytes int64
	until time.Time
}

// limitHolds is how long a limit holds on a connection. After that, the next larger
// message shows whether somebody has raised it.
const limitHolds = time.Minute

// learnLimit reports whether the channel was closed because of a message that is too
// large.
func (l *live) learnLimit(err error) bool {
	match := tooLarge.FindStringSubmatch(err.Error())
	if match == nil {
		return false
	}

	bytes, err := strconv.ParseInt(match[1], 10, 64)

	l.mu.Lock()
	defer l.mu.Unlock()

	l.limit = limit{bytes: bytes, until: time.Now().Add(limitHolds)}

	return err == nil
}

// largest returns the size in bytes of the largest message that the broker accepts, or 0
// if that is unknown.
func (l *live) largest() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()

	if time.Now().After(l.limit.until) {
		return 0
	}

	return l.limit.bytes
}

// AMQP limits, for names and for all headers of a message together. The headers must fit
// into a frame of RabbitMQ's default size, with some room for the properties.
const (
	maxName    = 255
	maxHeaders = 120_000
)

// sendable refuses a message that cannot be sent. Trying to send it would close the
// channel or the connection for all others. largest is the largest size that the broker
// accepts, or 0 if that is unknown.
func sendable(topic string, msg amqp091.Publishing, largest int64) error {
	refuse := func(remedy, format string, args ...any) error {
		return &driver.RefusedError{Scope: driver.OneMessage, Topic: topic, Remedy: remedy, Err: fmt.Errorf(format, args...)}
	}

	if largest > 0 && int64(len(msg.Body)) > largest {
		return refuse("raise RabbitMQ's max_message_size, or publish smaller messages",
			"message is too large: %d bytes, but rabbitmq accepts at most %d", len(msg.Body), largest)
	}

	size := 0

	for name, value := range msg.Headers {
		if len(name) > maxName {
			return refuse("shorten the name of the header", "a header name has %d bytes, expected at most %d", len(name), maxName)
		}

		text, _ := value.(string)
		size += len(name) + len(text) + 6
	}

	if size > maxHeaders {
		return refuse("send fewer or shorter headers", "headers are too large: %d bytes, expected at most %d", size, maxHeaders)
	}

	for _, name := range []string{msg.ContentType, msg.CorrelationId, msg.MessageId} {
		if len(name) > maxName {
			return refuse("shorten the content type, or the id", "a property has %d bytes, expected at most %d", len(name), maxName)
		}
	}

	return nil
}

// open returns the channel, opening it if necessary.
func (p *publisher) open(ctx context.Context) (*outlet, error) {
	l, err := p.driver.publishing.open(ctx)
	if err != nil {
		return nil, err
	}

	p.mu.Lock()
	defer p.mu.Unlock()

	if p.outlet != nil && p.outlet.live == l && !p.outlet.channel.IsClosed() {
		return p.outlet, nil
	}

	p.outlet, err = newOutlet(l, p.driver.cfg.Lanes)

	return p.outlet, err
}

// outlet is a channel with confirmations.
type outlet struct {
	live    *live
	channel *amqp091.Channel
	closed  <-chan *amqp091.Error
	returns <-chan amqp091.Return
	// answered is when the broker last answered, in nanoseconds.
	answered atomic.Int64
	// sending is held while a message is sent.
	sending sync.Mutex

	mu sync.Mutex
	// why says why the channel was closed.
	why error
	// returned holds the ids of messages that no queue accepted.
	returned map[string]bool
}

func newOutlet(l *live, lanes int) (*outlet, error) {
	channel, err := l.Channel()
	if err != nil {
		return nil, fmt.Errorf("opening channel: %w", err)
	}

	if err := channel.Confirm(false); err != nil {
		closeChannel(channel)

		return nil, fmt.Errorf("enabling publisher confirms: %w", err)
	}

	return &outlet{
		live: l, channel: channel, returned: map[string]bool{},
		closed: channel.NotifyClose(make(chan *amqp091.Error, 1)),
		// Each return is removed by the time its message is confirmed.
		returns: channel.NotifyReturn(make(chan amqp091.Return, 2*lanes)),
	}, nil
}

// errUnroutable reports that no queue is bound to the exchange with the topic as
// routing key.
var errUnroutable = errors.New("no queue accepted the message")

// send publishes a message and waits until the broker has confirmed it.
func (o *outlet) send(exchange, topic string, msg amqp091.Publishing) error {
	if err := o.live.alarm(); err != nil {
		return err
	}

	sent, confirmation, err := o.transmit(exchange, topic, msg)
	if err != nil {
		return o.lost(err)
	}

	crashpoint.At(crashpoint.RabbitMQSent)

	timeout := time.NewTimer(confirmTimeout)
	defer timeout.Stop()

	select {
	case <-confirmation.Done():
	case <-o.live.blockade():
		// The message may have been stored, even if the alarm is already over.
		return cmp.Or(o.live.alarm(), driver.ErrBlocked)
	case <-timeout.C:
		return o.late(topic, sent)
	}

	if !o.channel.IsClosed() { // closing resolves all confirmations
		o.answered.Store(time.Now().UnixNano())
	}

	switch {
	case o.wasReturned(msg.MessageId):
		return fmt.Errorf("publishing to exchange %s with routing key %s: %w", exchange, topic, errUnroutable)
	case confirmation.Acked():
		return nil
	case o.channel.IsClosed():
		return o.lost(driver.ErrClosed)
	}

	return &driver.RefusedError{
		Scope: driver.OneTopic, Topic: topic, Err: fmt.Errorf("rabbitmq did not store the message: a queue of topic %s is full or unavailable", topic),
		Remedy: "consume from the queue, or raise its limit",
	}
}

// transmit sends a message. It sends one at a time, so that the time-out does not
// include waiting for other messages.
func (o *outlet) transmit(exchange, topic string, msg amqp091.Publishing) (sent time.Time, c *amqp091.DeferredConfirmation, err error) {
	o.sending.Lock()
	defer o.sending.Unlock()

	// The call hangs if the broker does not read.
	guard := time.AfterFunc(confirmTimeout, func() { _ = o.live.socket.Close() })
	defer guard.Stop()

	sent = time.Now()
	c, err = o.channel.PublishWithDeferredConfirm(exchange, topic, true, false, msg)

	return sent, c, err
}

// wasReturned reports whether a confirmed message came back. The broker sends it back
// before confirming it, so it is in returns by now.
func (o *outlet) wasReturned(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()

	for {
		select {
		case r, open := <-o.returns:
			if open {
				o.returned[r.MessageId] = true

				continue
			}
		default:
		}

		was := o.returned[id]
		delete(o.returned, id)

		return was
	}
}

// lost returns why the channel was closed, or err if that is unknown. The channel is
// closed a moment before the reason arrives.
func (o *outlet) lost(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()

	if o.why == nil {
		o.why = err

		select {
		case why := <-o.closed:
			if why != nil {
				o.why = why
			}
		case <-time.After(closeTimeout):
		}
	}

	return fmt.Errorf("publishing to rabbitmq: %w", o.why)
}

// late returns the error for a message that was not confirmed in time. If others have
// been answered since it was sent, its queue is not working. If none have, the connection
// hangs and is abandoned.
func (o *outlet) late(topic string, sent time.Time) error {
	err := fmt.Errorf("rabbitmq did not confirm the message within %s", confirmTimeout)

	if o.answered.Load() < sent.UnixNano() {
		_ = o.live.socket.Close()

		return err
	}

	return &driver.RefusedError{
		Scope: driver.OneTopic, Topic: topic, Err: err,
		Remedy: "check the queue with `rabbitmqctl list_queues name state`: a quorum queue needs a majority of its nodes",
	}
}
