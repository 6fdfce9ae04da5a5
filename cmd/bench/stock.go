package main

import (
	"context"
	"sync"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker"
	brokerkafka "github.com/millracehq/millrace/internal/engine/broker/kafka"
	"github.com/millracehq/millrace/internal/engine/broker/rabbitmq"
)

// naiveInHand is the number of messages on a topic that the naive service has in hand:
// one for each Kafka partition or RabbitMQ subscription, because Watermill's subscribers
// handle one message at a time.
const naiveInHand = 64

// stockSubscriber returns the Watermill subscriber that the naive service uses.
func stockSubscriber(cfg broker.Config, topic string) (message.Subscriber, error) {
	if cfg.Kind == broker.Kafka {
		settings := kafka.DefaultSaramaSubscriberConfig()
		settings.Consumer.Offsets.Initial = -2 // the oldest

		return kafka.NewSubscriber(kafka.SubscriberConfig{
			Brokers: cfg.Kafka.Brokers, Unmarshaler: unmarshaler{}, OverwriteSaramaConfig: settings,
			ConsumerGroup: cfg.Kafka.Group + "." + topic,
		}, watermill.NopLogger{})
	}

	settings := amqp.NewDurableQueueConfig(string(cfg.RabbitMQ.URL))
	settings.Marshaler, settings.TopologyBuilder = marshaler{}, existing{}
	settings.Consume.Qos.PrefetchCount = 4

	subscriber, err := amqp.NewSubscriber(settings, watermill.NopLogger{})

	return fanIn{subscriber}, err
}

// unmarshaler adapts our unmarshaling of Kafka's records to Watermill.
type unmarshaler struct{}

func (unmarshaler) Unmarshal(record *sarama.ConsumerMessage) (*message.Message, error) {
	return brokerkafka.Unmarshal(record), nil
}

// marshaler adapts our marshaling for RabbitMQ to Watermill.
type marshaler struct{}

func (marshaler) Marshal(msg *message.Message) (amqp091.Publishing, error) {
	return rabbitmq.Marshal(msg), nil
}

func (marshaler) Unmarshal(delivery amqp091.Delivery) (*message.Message, error) {
	return rabbitmq.Unmarshal(delivery), nil
}

// existing declares nothing: it uses the queues that declareShared has created.
type existing struct{}

func (existing) BuildTopology(*amqp091.Channel, string, string, amqp.Config, watermill.LoggerAdapter) error {
	return nil
}

func (existing) ExchangeDeclare(*amqp091.Channel, string, amqp.Config) error { return nil }

// fanIn merges several subscriptions to a queue.
type fanIn struct{ message.Subscriber }

// Subscribe implements message.Subscriber.
func (f fanIn) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	var (
		out    = make(chan *message.Message)
		merged sync.WaitGroup
	)

	for range naiveInHand {
		in, err := f.Subscriber.Subscribe(ctx, topic)
		if err != nil {
			return nil, err
		}

		merged.Go(func() {
			for msg := range in {
				out <- msg
			}
		})
	}

	go func() {
		merged.Wait()
		close(out)
	}()

	return out, nil
}
