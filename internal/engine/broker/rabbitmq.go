package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/internal/engine/event"
)

// amqpCloudEvents are the prefixes of CloudEvents attributes in AMQP (its
// binding 1.0.2, section 3.1.3.1). We write the first and read both; ce_, which
// is Kafka's, is read here too.
var amqpCloudEvents = []string{"cloudEvents:", "cloudEvents_"}

// headerPartitionKey carries the key on AMQP, which knows none: the
// CloudEvents extension for partitioning.
const headerPartitionKey = event.CloudEventsPrefix + "partitionkey"

// unreadTTL is how long a topic that nobody consumes here keeps its messages
// for others, in milliseconds: 7 days.
const unreadTTL = int64(7 * 24 * time.Hour / time.Millisecond)

// prefetch lets the next message be there when one is acknowledged. Each
// subscription still has one in hand.
const prefetch = 4

type rabbitDriver struct {
	cfg    RabbitMQConfig
	logger *slog.Logger

	mu          sync.Mutex
	topics      []Topic
	pub         *amqp.Publisher
	subscribers []message.Subscriber
}

func newRabbitMQ(cfg RabbitMQConfig, logger *slog.Logger) *rabbitDriver {
	return &rabbitDriver{cfg: cfg, logger: logger}
}

func (r *rabbitDriver) lanes() int                   { return r.cfg.Lanes }
func (r *rabbitDriver) publisher() message.Publisher { return r.pub }

func (r *rabbitDriver) connect(_ context.Context, topics []Topic) error {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.topics = topics

	conn, err := amqp091.Dial(string(r.cfg.URL))
	if err != nil {
		return fmt.Errorf("reaching rabbitmq: %w", err)
	}
	defer conn.Close() //nolint:errcheck // only the topology was declared on it

	channel, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening channel: %w", err)
	}

	if err := r.declare(channel); err != nil {
		return err
	}

	r.pub, err = amqp.NewPublisher(r.config(), watermillLogger(r.logger))
	if err != nil {
		return fmt.Errorf("connecting publisher: %w", err)
	}

	return nil
}

// declare makes everything that messages pass before the first is published: a
// broker confirms a message for a queue that does not exist, and drops it.
func (r *rabbitDriver) declare(channel *amqp091.Channel) error {
	unroutable := r.cfg.Exchange + ".unroutable"

	if err := channel.ExchangeDeclare(unroutable, "fanout", true, false, false, false, nil); err != nil {
		return fmt.Errorf("declaring exchange %s: %w", unroutable, err)
	}

	if _, err := channel.QueueDeclare(unroutable, true, false, false, false, nil); err != nil {
		return fmt.Errorf("declaring queue %s: %w", unroutable, err)
	}

	if err := channel.QueueBind(unroutable, "", unroutable, false, nil); err != nil {
		return fmt.Errorf("binding queue %s: %w", unroutable, err)
	}

	if err := r.declareExchange(channel); err != nil {
		return err
	}

	for _, topic := range r.topics {
		if err := r.declareQueue(channel, topic); err != nil {
			return err
		}
	}

	return nil
}

func (r *rabbitDriver) declareExchange(channel *amqp091.Channel) error {
	err := channel.ExchangeDeclare(r.cfg.Exchange, "direct", true, false, false, false,
		amqp091.Table{"alternate-exchange": r.cfg.Exchange + ".unroutable"})
	if err != nil {
		return fmt.Errorf("declaring exchange %s: %w", r.cfg.Exchange, err)
	}

	return nil
}

func (r *rabbitDriver) declareQueue(channel *amqp091.Channel, topic Topic) error {
	var args amqp091.Table
	if topic.Consumer == "" {
		args = amqp091.Table{"x-message-ttl": unreadTTL}
	}

	if _, err := channel.QueueDeclare(topic.Name, true, false, false, false, args); err != nil {
		return fmt.Errorf("declaring queue %s: %w", topic.Name, err)
	}

	if err := channel.QueueBind(topic.Name, topic.Name, r.cfg.Exchange, false, nil); err != nil {
		return fmt.Errorf("binding queue %s: %w", topic.Name, err)
	}

	return nil
}

// BuildTopology declares everything again whenever a subscription begins: a
// broker that came back may have forgotten it.
func (r *rabbitDriver) BuildTopology(channel *amqp091.Channel, _, _ string, _ amqp.Config, _ watermill.LoggerAdapter) error {
	return r.declare(channel)
}

// ExchangeDeclare is called by the publisher before the first message.
func (r *rabbitDriver) ExchangeDeclare(channel *amqp091.Channel, _ string, _ amqp.Config) error {
	return r.declareExchange(channel)
}

func (r *rabbitDriver) config() amqp.Config {
	topic := func(topic string) string { return topic }

	return amqp.Config{
		Connection: amqp.ConnectionConfig{
			AmqpURI: string(r.cfg.URL),
			Reconnect: &amqp.ReconnectConfig{
				BackoffInitialInterval: 200 * time.Millisecond, BackoffMultiplier: 1.5,
				BackoffRandomizationFactor: 0.5, BackoffMaxInterval: 5 * time.Second,
			},
		},
		Marshaler:       rabbitMarshaler{},
		Exchange:        amqp.ExchangeConfig{GenerateName: func(string) string { return r.cfg.Exchange }, Type: "direct", Durable: true},
		Queue:           amqp.QueueConfig{GenerateName: topic, Durable: true},
		QueueBind:       amqp.QueueBindConfig{GenerateRoutingKey: topic},
		Publish:         amqp.PublishConfig{GenerateRoutingKey: topic, ConfirmDelivery: true, ChannelPoolSize: r.cfg.Lanes},
		Consume:         amqp.ConsumeConfig{Qos: amqp.QosConfig{PrefetchCount: prefetch}},
		TopologyBuilder: r,
	}
}

func (r *rabbitDriver) subscriber(string) message.Subscriber {
	subscriber, err := amqp.NewSubscriber(r.config(), watermillLogger(r.logger))
	if err != nil {
		return failingSubscriber{fmt.Errorf("connecting subscriber: %w", err)}
	}

	r.mu.Lock()
	defer r.mu.Unlock()

	r.subscribers = append(r.subscribers, subscriber)

	return &fanIn{Subscriber: subscriber, n: r.cfg.Consumers}
}

func (r *rabbitDriver) ping(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()

	if r.pub == nil || !r.pub.IsConnected() {
		return errors.New("not connected to rabbitmq")
	}

	return nil
}

func (r *rabbitDriver) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()

	var errs []error
	for _, subscriber := range r.subscribers {
		errs = append(errs, subscriber.Close())
	}

	if r.pub != nil {
		errs = append(errs, r.pub.Close())
	}

	return errors.Join(errs...)
}

// fanIn opens n subscriptions and merges them: a subscription has one message
// in hand, whatever its prefetch.
type fanIn struct {
	*amqp.Subscriber

	n int
}

// subscribeAtOnce is how many subscriptions of a queue are opened at once.
const subscribeAtOnce = 16

// Subscribe returns one channel for all subscriptions.
func (f *fanIn) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	var (
		out    = make(chan *message.Message)
		merged sync.WaitGroup
	)

	// Each is a channel of AMQP with several questions and answers: one after the
	// other, a service with many topics would take long to start.
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

// rabbitMarshaler translates between AMQP's messages and ours. It takes every
// message: one that failed here would be delivered again at once, for ever.
type rabbitMarshaler struct{}

// errPhantom makes Watermill reconnect; see Unmarshal.
var errPhantom = errors.New("the channel was closed")

// Marshal makes the AMQP message, persistent, with its id and type as
// properties too.
func (rabbitMarshaler) Marshal(msg *message.Message) (amqp091.Publishing, error) {
	headers := make(amqp091.Table, len(msg.Metadata)+1)
	for name, value := range sent(msg) {
		if attribute, ok := strings.CutPrefix(name, event.CloudEventsPrefix); ok {
			name = amqpCloudEvents[0] + attribute
		}

		headers[name] = value
	}

	if key := msg.Metadata[event.HeaderKey]; key != "" {
		headers[amqpCloudEvents[0]+"partitionkey"] = key
	}

	return amqp091.Publishing{
		Headers:       headers,
		ContentType:   msg.Metadata[event.HeaderContentType],
		DeliveryMode:  amqp091.Persistent,
		MessageId:     msg.UUID,
		CorrelationId: msg.Metadata[event.HeaderCorrelation],
		Timestamp:     time.Now(),
		Body:          msg.Payload,
	}, nil
}

// Unmarshal makes the message. One that carries no id at all gets a new one
// with every delivery: AMQP gives nothing to know it by, and the id of the
// aggregate decides then.
//
// When the broker closes a channel, Watermill reads an empty delivery from it.
// That is the only error: it cannot be answered, at which Watermill
// reconnects, as it should.
func (rabbitMarshaler) Unmarshal(delivery amqp091.Delivery) (*message.Message, error) {
	if delivery.Acknowledger == nil {
		return nil, errPhantom
	}

	headers := make(event.Headers, len(delivery.Headers)+2)
	for name, value := range delivery.Headers {
		for _, prefix := range amqpCloudEvents {
			if attribute, ok := strings.CutPrefix(name, prefix); ok {
				name = event.CloudEventsPrefix + attribute
			}
		}

		headers[name] = text(value)
	}

	if delivery.ContentType != "" && headers[event.HeaderContentType] == "" {
		headers[event.HeaderContentType] = delivery.ContentType
	}

	if delivery.CorrelationId != "" && headers[event.HeaderCorrelation] == "" {
		headers[event.HeaderCorrelation] = delivery.CorrelationId
	}

	origin := "rabbitmq:" + delivery.RoutingKey

	return received(headers, delivery.MessageId, headers[headerPartitionKey], origin, "", delivery.Body), nil
}

// text renders a header value of any AMQP type.
func text(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		return v
	case []byte:
		return string(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case amqp091.Table, []any:
		encoded, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}

		return string(encoded)
	default:
		return fmt.Sprint(v)
	}
}
