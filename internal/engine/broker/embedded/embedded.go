// Package embedded is a broker that needs only Postgres. It passes messages from the
// relay to the consumers of this process. The outbox is the queue: a row stays there
// until its consumer acknowledges the message.
package embedded

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Config tunes the broker.
type Config struct {
	// Lanes is how many messages are in flight at once. Defaults to 256.
	Lanes int `koanf:"lanes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Lanes: 256} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error { return check.Positive("broker.embedded.lanes", c.Lanes) }

// Driver is the embedded broker.
//
// It does not use Watermill's GoChannel, which delivers a message that was not
// acknowledged again by itself, immediately and indefinitely. Here the message returns
// to its publisher, the relay, which keeps the order of its key.
type Driver struct {
	cfg     Config
	topics  map[string]chan *message.Message
	closing context.Context //nolint:containedctx // it is a lifetime, not a request
	stop    context.CancelFunc
}

// New returns an unconnected broker.
func New(cfg Config) *Driver {
	closing, stop := context.WithCancel(context.Background())

	return &Driver{cfg: cfg, closing: closing, stop: stop}
}

// Connect implements driver.Driver.
func (d *Driver) Connect(_ context.Context, topics []driver.Topic) error {
	d.topics = make(map[string]chan *message.Message, len(topics))

	for _, topic := range topics {
		if topic.Consumed {
			d.topics[topic.Name] = make(chan *message.Message)
		}
	}

	return nil
}

// Publisher implements driver.Driver.
func (d *Driver) Publisher() message.Publisher { return publisher{d} }

// Subscriber implements driver.Driver. The relay delivers the messages of a key in
// order.
func (d *Driver) Subscriber(string, func([]byte) string) (message.Subscriber, error) {
	return subscriber{d}, nil
}

// Lanes implements driver.Driver.
func (d *Driver) Lanes() int { return d.cfg.Lanes }

// Ping implements driver.Driver.
func (d *Driver) Ping(context.Context) error { return nil }

// Backlogs implements driver.Driver: all messages are in the outbox.
func (d *Driver) Backlogs(context.Context, []string) ([]driver.Backlog, error) { return nil, nil }

// Close implements driver.Driver.
func (d *Driver) Close() error {
	d.stop()

	return nil
}

var errNacked = errors.New("the consumer did not acknowledge the message")

type publisher struct{ *Driver }

// Publish waits until the consumer acknowledges the messages. It drops messages on
// topics without a consumer, because no other process can read them.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	consumed := p.topics[topic]
	if consumed == nil {
		return nil
	}

	for _, msg := range messages {
		if err := p.deliver(topic, consumed, msg); err != nil {
			return err
		}
	}

	return nil
}

func (p publisher) deliver(topic string, consumed chan<- *message.Message, msg *message.Message) error {
	if msg.Metadata[event.HeaderOrigin] == "" {
		msg.Metadata[event.HeaderOrigin] = "embedded:" + topic
	}

	select {
	case consumed <- msg:
	case <-p.closing.Done():
		return driver.ErrClosed
	}

	select {
	case <-msg.Acked():
		return nil
	case <-msg.Nacked():
		return errNacked
	case <-p.closing.Done():
	}

	select { // an acknowledgement before the end still counts
	case <-msg.Acked():
		return nil
	default:
		return driver.ErrClosed
	}
}

// Close does nothing: closing the driver ends all deliveries.
func (publisher) Close() error { return nil }

type subscriber struct{ *Driver }

// Subscribe implements message.Subscriber.
func (s subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)

	go func() {
		defer close(out)

		for {
			select {
			case msg := <-s.topics[topic]:
				msg.SetContext(ctx)

				select {
				case out <- msg:
				case <-ctx.Done():
					msg.Nack()
				case <-s.closing.Done(): // the publisher notices
				}
			case <-ctx.Done():
				return
			case <-s.closing.Done():
				return
			}
		}
	}()

	return out, nil
}

// Close ends all deliveries. The router closes all subscribers together.
func (s subscriber) Close() error {
	s.stop()

	return nil
}

// Refusals implements driver.Driver.
func (d *Driver) Refusals() []driver.Refusal { return nil }
