// Package embedded is a broker that needs only Postgres: Watermill's GoChannel
// between the relay and the consumers of this process. The outbox is the queue: a row
// stays there until its consumer acknowledges the message.
package embedded

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

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
// It does not use GoChannel's BlockPublishUntilSubscriberAck. With that option
// Publish would hold the topic's mutex while it waits, which limits a topic to one
// message in flight, and it would return nil if the subscription ended before the
// acknowledgement. Instead each message carries a delivery in its context, and
// Publish waits for that.
type Driver struct {
	cfg      Config
	channel  *gochannel.GoChannel
	consumed map[string]bool
	closing  context.Context //nolint:containedctx // it is a lifetime, not a request
	stop     context.CancelFunc
}

// New returns an unconnected broker.
func New(cfg Config, logger *slog.Logger) *Driver {
	closing, stop := context.WithCancel(context.Background())

	return &Driver{
		cfg:     cfg,
		channel: gochannel.NewGoChannel(gochannel.Config{PreserveContext: true}, driver.WatermillLogger(logger)),
		closing: closing,
		stop:    stop,
	}
}

// Connect implements driver.Driver.
func (d *Driver) Connect(_ context.Context, topics []driver.Topic) error {
	d.consumed = make(map[string]bool, len(topics))
	for _, topic := range topics {
		d.consumed[topic.Name] = topic.Consumed
	}

	return nil
}

// Publisher implements driver.Driver.
func (d *Driver) Publisher() message.Publisher { return publisher{d} }

// Subscriber implements driver.Driver.
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

	return d.channel.Close()
}

// delivery tracks a message from Publish to its consumer.
type delivery struct {
	done chan error
	// delivered is the message that the consumer received.
	delivered atomic.Pointer[message.Message]
}

// resultAtClose returns the result of a delivery when the broker closes. An earlier
// acknowledgement still counts.
func (d *delivery) resultAtClose() error {
	if msg := d.delivered.Load(); msg != nil {
		select {
		case <-msg.Acked():
			return nil
		default:
		}
	}

	return driver.ErrClosed
}

type deliveryKey struct{}

var errNacked = errors.New("the consumer did not acknowledge the message")

type publisher struct{ *Driver }

// Publish waits until the consumer acknowledges the messages. It drops messages on
// topics without a consumer, because no other process can read them.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		if !p.consumed[topic] {
			continue
		}

		if err := p.deliver(topic, msg); err != nil {
			return err
		}
	}

	return nil
}

func (p publisher) deliver(topic string, msg *message.Message) error {
	d := &delivery{done: make(chan error, 1)}

	if msg.Metadata[event.HeaderOrigin] == "" {
		msg.Metadata[event.HeaderOrigin] = "embedded:" + topic
	}

	msg.SetContext(context.WithValue(p.closing, deliveryKey{}, d))

	if err := p.channel.Publish(topic, msg); err != nil {
		return err
	}

	select {
	case err := <-d.done:
		return err
	case <-p.closing.Done():
		return d.resultAtClose()
	}
}

// Close does nothing: the driver closes the channel.
func (publisher) Close() error { return nil }

type subscriber struct{ *Driver }

// Subscribe forwards messages and reports their acknowledgements to Publish.
func (s subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.channel.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}

	out := make(chan *message.Message)

	go func() {
		defer close(out)

		for msg := range in {
			s.forward(msg, out)
		}
	}()

	return out, nil
}

func (s subscriber) forward(msg *message.Message, out chan<- *message.Message) {
	d, _ := msg.Context().Value(deliveryKey{}).(*delivery)
	d.delivered.Store(msg)

	select {
	case out <- msg:
		go s.report(msg, d)
	case <-s.closing.Done():
	}
}

// report waits for the consumer's answer. A nacked message returns to the relay,
// which publishes it again later. GoChannel would redeliver it immediately and
// indefinitely.
func (s subscriber) report(msg *message.Message, d *delivery) {
	select {
	case <-msg.Acked():
		d.done <- nil
	case <-msg.Nacked():
		d.done <- errNacked
	case <-s.closing.Done():
	}
}

// Close ends all deliveries. The router closes all subscribers together.
func (s subscriber) Close() error {
	s.stop()

	return nil
}
