// Package rabbitmq connects to RabbitMQ through Watermill's publisher and subscriber.
package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/tlsconfig"
)

// unconsumedTTL is how long, in milliseconds, the queue of a topic that is not
// consumed here keeps messages: 7 days.
const unconsumedTTL = int64(7 * 24 * time.Hour / time.Millisecond)

// prefetch buffers messages so that the next one is ready after an acknowledgement.
// Each subscription still processes one at a time.
const prefetch = 4

// Driver is a connection to RabbitMQ.
type Driver struct {
	cfg    Config
	logger *slog.Logger

	mu     sync.Mutex
	topics []driver.Topic
	pub    *amqp.Publisher
}

// New returns a connection that is not yet established.
func New(cfg Config, logger *slog.Logger) *Driver { return &Driver{cfg: cfg, logger: logger} }

// Lanes implements driver.Driver.
func (d *Driver) Lanes() int { return d.cfg.Lanes }

// Publisher implements driver.Driver.
func (d *Driver) Publisher() message.Publisher { return d.pub }

// Connect implements driver.Driver.
func (d *Driver) Connect(_ context.Context, topics []driver.Topic) error {
	d.mu.Lock()
	defer d.mu.Unlock()

	d.topics = topics

	cfg, err := d.config()
	if err != nil {
		return err
	}

	conn, err := amqp091.DialTLS(string(d.cfg.URL), cfg.Connection.TLSConfig)
	if err != nil {
		return fmt.Errorf("reaching rabbitmq: %w", err)
	}
	defer conn.Close() //nolint:errcheck // it only declared the topology

	channel, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening channel: %w", err)
	}

	if err := d.declare(channel); err != nil {
		return err
	}

	d.pub, err = amqp.NewPublisher(cfg, driver.WatermillLogger(d.logger))
	if err != nil {
		return fmt.Errorf("connecting publisher: %w", err)
	}

	return nil
}

// declare declares the whole topology before the first message is published: RabbitMQ
// confirms and then drops messages for queues that do not exist.
func (d *Driver) declare(channel *amqp091.Channel) error {
	unroutable := d.cfg.Exchange + ".unroutable"

	if err := channel.ExchangeDeclare(unroutable, "fanout", true, false, false, false, nil); err != nil {
		return fmt.Errorf("declaring exchange %s: %w", unroutable, err)
	}

	if _, err := channel.QueueDeclare(unroutable, true, false, false, false, nil); err != nil {
		return fmt.Errorf("declaring queue %s: %w", unroutable, err)
	}

	if err := channel.QueueBind(unroutable, "", unroutable, false, nil); err != nil {
		return fmt.Errorf("binding queue %s: %w", unroutable, err)
	}

	if err := d.declareExchange(channel); err != nil {
		return err
	}

	for _, topic := range d.topics {
		if err := d.declareQueue(channel, topic); err != nil {
			return err
		}
	}

	return nil
}

func (d *Driver) declareExchange(channel *amqp091.Channel) error {
	err := channel.ExchangeDeclare(d.cfg.Exchange, "direct", true, false, false, false,
		amqp091.Table{"alternate-exchange": d.cfg.Exchange + ".unroutable"})
	if err != nil {
		return fmt.Errorf("declaring exchange %s: %w", d.cfg.Exchange, err)
	}

	return nil
}

func (d *Driver) declareQueue(channel *amqp091.Channel, topic driver.Topic) error {
	var args amqp091.Table
	if !topic.Consumed {
		args = amqp091.Table{"x-message-ttl": unconsumedTTL}
	}

	if _, err := channel.QueueDeclare(topic.Name, true, false, false, false, args); err != nil {
		return fmt.Errorf("declaring queue %s: %w", topic.Name, err)
	}

	if err := channel.QueueBind(topic.Name, topic.Name, d.cfg.Exchange, false, nil); err != nil {
		return fmt.Errorf("binding queue %s: %w", topic.Name, err)
	}

	return nil
}

// BuildTopology redeclares everything at the start of each subscription, because the
// broker may have lost it.
func (d *Driver) BuildTopology(channel *amqp091.Channel, _, _ string, _ amqp.Config, _ watermill.LoggerAdapter) error {
	return d.declare(channel)
}

// ExchangeDeclare is called by the publisher before its first message.
func (d *Driver) ExchangeDeclare(channel *amqp091.Channel, _ string, _ amqp.Config) error {
	return d.declareExchange(channel)
}

func (d *Driver) config() (amqp.Config, error) {
	topic := func(topic string) string { return topic }

	security, err := tlsconfig.New(d.cfg.CAFile)
	if err != nil {
		return amqp.Config{}, fmt.Errorf("broker.rabbitmq.ca_file: %w", err)
	}

	if uri, err := amqp091.ParseURI(string(d.cfg.URL)); err == nil {
		security.ServerName = uri.Host // otherwise the client sets it, with a data race
	}

	return amqp.Config{
		Connection: amqp.ConnectionConfig{
			AmqpURI:   string(d.cfg.URL),
			TLSConfig: security, // ignored by amqp://
			Reconnect: &amqp.ReconnectConfig{
				BackoffInitialInterval: 200 * time.Millisecond, BackoffMultiplier: 1.5,
				BackoffRandomizationFactor: 0.5, BackoffMaxInterval: 5 * time.Second,
			},
		},
		Marshaler:       Marshaler{},
		Exchange:        amqp.ExchangeConfig{GenerateName: func(string) string { return d.cfg.Exchange }, Type: "direct", Durable: true},
		Queue:           amqp.QueueConfig{GenerateName: topic, Durable: true},
		QueueBind:       amqp.QueueBindConfig{GenerateRoutingKey: topic},
		Publish:         amqp.PublishConfig{GenerateRoutingKey: topic, ConfirmDelivery: true, ChannelPoolSize: d.cfg.Lanes},
		Consume:         amqp.ConsumeConfig{Qos: amqp.QosConfig{PrefetchCount: prefetch}},
		TopologyBuilder: d,
	}, nil
}

// Subscriber implements driver.Driver.
func (d *Driver) Subscriber(string, func([]byte) string) (message.Subscriber, error) {
	cfg, err := d.config()
	if err != nil {
		return nil, err
	}

	subscriber, err := amqp.NewSubscriber(cfg, driver.WatermillLogger(d.logger))

	return &fanIn{Subscriber: subscriber, n: d.cfg.Consumers}, err
}

// Ping implements driver.Driver.
func (d *Driver) Ping(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()

	if d.pub == nil || !d.pub.IsConnected() {
		return errors.New("not connected to rabbitmq")
	}

	return nil
}

// Close implements driver.Driver.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()

	if d.pub == nil {
		return nil
	}

	return d.pub.Close()
}

// fanIn merges n subscriptions into one. A single subscription has one message in
// flight, whatever its prefetch.
type fanIn struct {
	*amqp.Subscriber

	n int
}

// subscribeAtOnce is how many subscriptions of a queue are opened concurrently.
const subscribeAtOnce = 16

// Subscribe returns one channel for all subscriptions.
func (f *fanIn) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	var (
		out    = make(chan *message.Message)
		merged sync.WaitGroup
	)

	// Opening an AMQP channel takes several round trips. Opening them sequentially
	// slows the start of a service with many topics.
	var opening errgroup.Group

	opening.SetLimit(subscribeAtOnce)

	for range f.n {
		opening.Go(func() error {
			in, err := f.Subscriber.Subscribe(ctx, topic)
			if err != nil {
				return err
			}

			merged.Go(func() {
				for msg := range in {
					out <- msg
				}
			})

			return nil
		})
	}

	if err := opening.Wait(); err != nil {
		return nil, err
	}

	go func() {
		merged.Wait()
		close(out)
	}()

	return out, nil
}
