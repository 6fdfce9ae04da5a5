// Package embedded is a broker that needs only Postgres. It passes messages from the
// relay to the consumers of this process. The outbox is the queue: a row stays there
// until its consumer acknowledges the message.
package embedded

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Config tunes the broker.
type Config struct {
	// Lanes is the maximum number of messages in flight, across all topics. Defaults to
	// 1024.
	Lanes int `koanf:"lanes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Lanes: 1024} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error { return check.Positive("broker.embedded.lanes", c.Lanes) }

// Driver is the embedded broker.
//
// It does not use Watermill's GoChannel, which redelivers an unacknowledged message
// itself, immediately and indefinitely. Here the message returns to its publisher, the
// relay, which keeps the order of its key.
type Driver struct {
	cfg     Config
	topics  map[string]*topic
	closing context.Context //nolint:containedctx // it is a lifetime, not a request
	stop    context.CancelFunc
}

// topic is a topic with a consumer. handle and ctx are set before subscribed is closed.
type topic struct {
	subscribed chan struct{}
	handle     message.HandlerFunc
	ctx        context.Context //nolint:containedctx // it is the lifetime of the subscription
}

// New returns an unconnected broker.
func New(cfg Config) *Driver {
	closing, stop := context.WithCancel(context.Background())

	return &Driver{cfg: cfg, closing: closing, stop: stop}
}

// Connect implements driver.Driver.
func (d *Driver) Connect(_ context.Context, topics []driver.Topic) error {
	d.topics = make(map[string]*topic, len(topics))

	for _, t := range topics {
		if t.Consumed {
			d.topics[t.Name] = &topic{subscribed: make(chan struct{})}
		}
	}

	return nil
}

// Publisher implements driver.Driver.
func (d *Driver) Publisher() message.Publisher { return publisher{d} }

// Subscriber implements driver.Driver. The relay delivers messages with the same key in
// order.
func (d *Driver) Subscriber(string, func([]byte) string) (message.Subscriber, error) {
	return &subscriber{Driver: d}, nil
}

// Lanes implements driver.Driver.
func (d *Driver) Lanes() int { return d.cfg.Lanes }

// Run implements driver.Driver.
func (d *Driver) Run() int { return 1 }

// Ping implements driver.Driver.
func (d *Driver) Ping(context.Context) error { return nil }

// Backlogs implements driver.Driver: all messages are in the outbox.
func (d *Driver) Backlogs(context.Context, []string) ([]driver.Backlog, error) { return nil, nil }

// Refusals implements driver.Driver.
func (d *Driver) Refusals() []driver.Refusal { return nil }

// Close implements driver.Driver.
func (d *Driver) Close() error {
	d.stop()

	return nil
}

var (
	errNacked    = errors.New("the consumer did not acknowledge the message")
	errNoHandler = errors.New("the embedded broker needs a handler: call Handle before Subscribe")
)

type publisher struct{ *Driver }

// Publish calls the topic's handler, and returns once it has settled the messages. It
// drops messages on topics without a consumer, because no other process can read them.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	consumed := p.topics[topic]
	if consumed == nil {
		return nil
	}

	select {
	case <-consumed.subscribed:
	case <-p.closing.Done():
		return driver.ErrClosed
	}

	for _, msg := range messages {
		if msg.Metadata[event.HeaderOrigin] == "" {
			msg.Metadata[event.HeaderOrigin] = "embedded:" + topic
		}

		msg.SetContext(consumed.ctx)

		_, err := consumed.handle(msg)

		switch {
		case err != nil && p.closing.Err() != nil:
			return driver.ErrClosed
		case err != nil:
			return errNacked
		}
	}

	return nil
}

// Close does nothing: closing the driver ends all deliveries.
func (publisher) Close() error { return nil }

// subscriber holds a topic's handler.
type subscriber struct {
	*Driver

	handle message.HandlerFunc
}

// Handle sets the handler that a publisher calls in its own goroutine. Passing a
// message through channels would take two more goroutines and grow the stack of one of
// them, which costs a fifth of the service's CPU.
func (s *subscriber) Handle(handle message.NoPublishHandlerFunc) {
	s.handle = middleware.Recoverer(func(msg *message.Message) ([]*message.Message, error) { return nil, handle(msg) })
}

// Subscribe implements message.Subscriber. The channel carries no messages, because the
// handler gets them; it is closed when the subscription ends. Each topic is subscribed
// to once.
func (s *subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if s.handle == nil {
		return nil, errNoHandler
	}

	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(s.closing, cancel)

	consumed, out := s.topics[topic], make(chan *message.Message)
	consumed.handle, consumed.ctx = s.handle, ctx
	close(consumed.subscribed)

	context.AfterFunc(ctx, func() { close(out) })

	return out, nil
}

// Close ends all deliveries. The router closes all subscribers together.
func (s *subscriber) Close() error {
	s.stop()

	return nil
}
