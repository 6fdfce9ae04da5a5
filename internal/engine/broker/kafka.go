package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Sizes that let messages of other producers reach us, so that they can be
// rejected where an operator sees them: 16 MiB.
const maxKafkaBytes = 16 << 20

type kafkaDriver struct {
	cfg    KafkaConfig
	logger *slog.Logger

	mu          sync.Mutex
	client      sarama.Client
	pub         message.Publisher
	subscribers []message.Subscriber
}

func newKafka(cfg KafkaConfig, logger *slog.Logger) *kafkaDriver {
	return &kafkaDriver{cfg: cfg, logger: logger}
}

func (k *kafkaDriver) lanes() int                   { return k.cfg.Lanes }
func (k *kafkaDriver) publisher() message.Publisher { return k.pub }

func (k *kafkaDriver) connect(_ context.Context, topics []Topic) error {
	k.mu.Lock()
	defer k.mu.Unlock()

	cfg, err := k.sarama()
	if err != nil {
		return err
	}

	client, err := sarama.NewClient(k.cfg.Brokers, cfg)
	if err != nil {
		return fmt.Errorf("reaching kafka at %v: %w", k.cfg.Brokers, err)
	}

	if err := k.createTopics(client, topics); err != nil {
		return errors.Join(err, client.Close())
	}

	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: k.cfg.Brokers, Marshaler: kafkaMarshaler{prefix: k.cfg.Prefix}, OverwriteSaramaConfig: cfg,
	}, watermillLogger(k.logger))
	if err != nil {
		return errors.Join(err, client.Close())
	}

	k.client, k.pub = client, publisher

	return nil
}

// createTopics makes those that do not exist.
func (k *kafkaDriver) createTopics(client sarama.Client, topics []Topic) error {
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return fmt.Errorf("administrating kafka: %w", err)
	}
	// The admin is not closed: that would close the client.

	for _, topic := range topics {
		err := admin.CreateTopic(k.cfg.Prefix+topic.Name, &sarama.TopicDetail{
			NumPartitions: k.cfg.Partitions, ReplicationFactor: k.cfg.ReplicationFactor,
		}, false)
		if err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
			return fmt.Errorf("creating topic %s: %w", topic.Name, err)
		}
	}

	for _, topic := range topics {
		name := k.cfg.Prefix + topic.Name
		if err := client.RefreshMetadata(name); err != nil {
			return fmt.Errorf("waiting for topic %s: %w", topic.Name, err)
		}

		partitions, err := client.Partitions(name)
		if err != nil {
			return fmt.Errorf("waiting for topic %s: %w", topic.Name, err)
		}

		if len(partitions) != int(k.cfg.Partitions) {
			k.logger.Warn("topic has another number of partitions than configured",
				slog.String("topic", topic.Name), slog.Int("partitions", len(partitions)))
		}
	}

	return nil
}

func (k *kafkaDriver) subscriber(consumer string) message.Subscriber {
	cfg, err := k.sarama()
	if err != nil {
		return failingSubscriber{err}
	}

	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:               k.cfg.Brokers,
		Unmarshaler:           kafkaMarshaler{},
		OverwriteSaramaConfig: cfg,
		ConsumerGroup:         k.cfg.Group + "." + consumer,
		// A message is returned only when the service stops.
		NackResendSleep: time.Second,
	}, watermillLogger(k.logger))
	if err != nil {
		return failingSubscriber{err}
	}

	k.mu.Lock()
	defer k.mu.Unlock()

	k.subscribers = append(k.subscribers, subscriber)

	return prefixedSubscriber{subscriber, k.cfg.Prefix}
}

// prefixedSubscriber reads the topics as Kafka knows them.
type prefixedSubscriber struct {
	message.Subscriber

	prefix string
}

// Subscribe implements message.Subscriber.
func (s prefixedSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return s.Subscriber.Subscribe(ctx, s.prefix+topic)
}

func (k *kafkaDriver) ping(context.Context) error {
	k.mu.Lock()
	client := k.client
	k.mu.Unlock()

	if client == nil {
		return errors.New("not connected to kafka")
	}

	if err := client.RefreshMetadata(); err != nil {
		return fmt.Errorf("reaching kafka: %w", err)
	}

	return nil
}

func (k *kafkaDriver) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()

	var errs []error
	for _, subscriber := range k.subscribers {
		errs = append(errs, subscriber.Close())
	}

	if k.pub != nil {
		errs = append(errs, k.pub.Close(), k.client.Close())
	}

	return errors.Join(errs...)
}

// sarama returns the settings of producers and consumers alike. Each one that
// differs from the library's default says why.
func (k *kafkaDriver) sarama() (*sarama.Config, error) {
	cfg := sarama.NewConfig()
	cfg.ClientID = "millrace"
	cfg.Version = sarama.V3_0_0_0 // idempotent producers, sticky groups

	// A dead broker is noticed soon: the relay and the consumers try again.
	cfg.Net.DialTimeout = 5 * time.Second
	cfg.Net.ReadTimeout = 15 * time.Second
	cfg.Net.WriteTimeout = 15 * time.Second

	cfg.Producer.Return.Successes = true // a synchronous producer needs it
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Idempotent = true // a repeated request is written once...
	cfg.Net.MaxOpenRequests = 1    // ...which needs one request at a time
	// Not compressed: a plain install of some clients (aiokafka and with it
	// FastStream) has no codec. A topic's compression.type can say otherwise.
	cfg.Producer.Compression = sarama.CompressionNone
	cfg.Producer.MaxMessageBytes = maxKafkaBytes
	cfg.Producer.Retry.Max = 5

	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest // a new group takes what is there
	cfg.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategySticky()}
	cfg.Consumer.Return.Errors = true

	return cfg, k.secure(cfg)
}

func (k *kafkaDriver) secure(cfg *sarama.Config) error {
	if k.cfg.TLS {
		cfg.Net.TLS.Enable = true
		cfg.Net.TLS.Config = &tls.Config{MinVersion: tls.VersionTLS12}
	}

	if k.cfg.CAFile != "" {
		pem, err := os.ReadFile(k.cfg.CAFile)
		if err != nil {
			return fmt.Errorf("broker.kafka.ca_file: %w", err)
		}

		cfg.Net.TLS.Config.RootCAs = x509.NewCertPool()
		if !cfg.Net.TLS.Config.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("broker.kafka.ca_file: %s has no certificate", k.cfg.CAFile)
		}
	}

	if k.cfg.User != "" {
		cfg.Net.SASL.Enable = true
		cfg.Net.SASL.Mechanism = sarama.SASLTypeSCRAMSHA512
		cfg.Net.SASL.User, cfg.Net.SASL.Password = k.cfg.User, string(k.cfg.Password)
		cfg.Net.SASL.SCRAMClientGeneratorFunc = newSCRAM
	}

	return nil
}

// kafkaMarshaler translates between Kafka's records and messages. It takes
// every record: an error here would stop the partition for ever.
type kafkaMarshaler struct{ prefix string }

// Marshal makes the record: the key orders, the payload goes as it is.
func (m kafkaMarshaler) Marshal(topic string, msg *message.Message) (*sarama.ProducerMessage, error) {
	headers := sent(msg)
	record := &sarama.ProducerMessage{
		Topic:   m.prefix + topic,
		Key:     sarama.StringEncoder(msg.Metadata[event.HeaderKey]),
		Value:   sarama.ByteEncoder(msg.Payload),
		Headers: make([]sarama.RecordHeader, 0, len(headers)),
	}

	for name, value := range headers {
		record.Headers = append(record.Headers, sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
	}

	return record, nil
}

// Unmarshal makes the message. A record without an id of its own is known by
// its coordinates, which are the same at every delivery.
func (kafkaMarshaler) Unmarshal(record *sarama.ConsumerMessage) (*message.Message, error) {
	headers := make(event.Headers, len(record.Headers)+2)

	for _, header := range record.Headers {
		if header == nil {
			continue
		}

		name := string(header.Key)
		for n := 2; ; n++ {
			if _, taken := headers[name]; !taken {
				break
			}

			name = string(header.Key) + "#" + strconv.Itoa(n)
		}

		headers[name] = string(header.Value)
	}

	origin := fmt.Sprintf("kafka:%s/%d@%d", record.Topic, record.Partition, record.Offset)

	return received(headers, "", string(record.Key), origin, origin, record.Value), nil
}

// failingSubscriber reports at Subscribe what went wrong before.
type failingSubscriber struct{ err error }

func (f failingSubscriber) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return nil, f.err
}

func (failingSubscriber) Close() error { return nil }
