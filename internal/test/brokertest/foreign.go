// Package brokertest provides real brokers for tests, and producers that do not use
// Millrace.
package brokertest

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Environment variables with the addresses of test servers.
const (
	Kafka    = "MILLRACE_TEST_KAFKA_BROKERS"
	RabbitMQ = "MILLRACE_TEST_RABBITMQ_URL"
)

// Address returns the address of a server: from the environment variable, or of the
// server started by `make services`. Without either, the test fails.
func Address(tb testing.TB, variable string) string {
	tb.Helper()

	value, err := pgtest.Setting(variable)
	if err != nil {
		tb.Fatal(err)
	}

	if value == "" {
		tb.Fatalf("%s is not set and no server is running: run `make services`", variable)
	}

	conn, err := net.DialTimeout("tcp", hostPort(value), 5*time.Second)
	if err != nil {
		tb.Fatalf("%s: %v: run `make services`", variable, err)
	}

	_ = conn.Close()

	return value
}

// hostPort returns the first host:port in a Kafka or RabbitMQ address.
func hostPort(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}

	first, _, _ := strings.Cut(address, ",")

	return first
}

// Topic returns a topic that no other test uses.
func Topic() string { return "t-" + strings.ToLower(rand.Text()) }

// Foreign is a message from a producer that does not use Millrace.
type Foreign struct {
	Key     string
	ID      string // if the broker has message IDs
	Headers map[string]any
	Payload []byte
	// At is the time of a Kafka record. Zero means now.
	At time.Time
}

// CreateKafkaTopic creates a topic with one partition, as an administrator would.
func CreateKafkaTopic(tb testing.TB, cfg broker.Config, topic string, settings map[string]string) {
	tb.Helper()

	client := sarama.NewConfig()
	client.Version = sarama.V3_0_0_0

	admin, err := sarama.NewClusterAdmin(cfg.Kafka.Brokers, client)
	if err != nil {
		tb.Fatal(err)
	}
	defer admin.Close()

	detail := &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: map[string]*string{}}
	for name, value := range settings {
		detail.ConfigEntries[name] = &value
	}

	if err := admin.CreateTopic(topic, detail, false); err != nil {
		tb.Fatal(err)
	}
}

// ProduceKafka publishes to Kafka as another producer would.
func ProduceKafka(tb testing.TB, cfg broker.Config, topic string, messages ...Foreign) {
	tb.Helper()

	settings := sarama.NewConfig()
	settings.Producer.Return.Successes = true
	settings.Version = sarama.V3_0_0_0

	producer, err := sarama.NewSyncProducer(cfg.Kafka.Brokers, settings)
	if err != nil {
		tb.Fatal(err)
	}
	defer producer.Close()

	for _, m := range messages {
		record := &sarama.ProducerMessage{Topic: topic, Value: sarama.ByteEncoder(m.Payload), Timestamp: m.At}
		if m.Key != "" {
			record.Key = sarama.StringEncoder(m.Key)
		}

		if m.ID != "" { // Kafka has no message IDs
			record.Headers = append(record.Headers, sarama.RecordHeader{Key: []byte("_watermill_message_uuid"), Value: []byte(m.ID)})
		}

		for name, value := range m.Headers {
			record.Headers = append(record.Headers, sarama.RecordHeader{Key: []byte(name), Value: fmt.Append(nil, value)})
		}

		if _, _, err := producer.SendMessage(record); err != nil {
			tb.Fatal(err)
		}
	}
}

// ProduceRabbitMQ publishes to RabbitMQ as another producer would, and waits until all
// messages are confirmed: a quorum queue may lose those that are not.
func ProduceRabbitMQ(tb testing.TB, cfg broker.Config, topic string, messages ...Foreign) {
	tb.Helper()

	channel := openRabbitMQ(tb, cfg)

	if err := channel.Confirm(false); err != nil {
		tb.Fatal(err)
	}

	confirmations := make([]*amqp.DeferredConfirmation, len(messages))

	for i, m := range messages {
		var err error

		// Use the default exchange: other producers do not know ours.
		confirmations[i], err = channel.PublishWithDeferredConfirm("", topic, true, false, amqp.Publishing{
			MessageId: m.ID, Headers: amqp.Table(m.Headers), Body: m.Payload,
		})
		if err != nil {
			tb.Fatal(err)
		}
	}

	for i, confirmation := range confirmations {
		if !confirmation.Wait() {
			tb.Fatalf("RabbitMQ did not take message %d", i)
		}
	}
}

// openRabbitMQ returns a channel that closes when the test ends.
func openRabbitMQ(tb testing.TB, cfg broker.Config) *amqp.Channel {
	tb.Helper()

	conn, err := amqp.Dial(string(cfg.RabbitMQ.URL))
	if err != nil {
		tb.Fatal(err)
	}

	tb.Cleanup(func() { _ = conn.Close() })

	channel, err := conn.Channel()
	if err != nil {
		tb.Fatal(err)
	}

	return channel
}

// DeclareRabbitMQ declares a durable queue as another application would, with its own
// arguments.
func DeclareRabbitMQ(tb testing.TB, cfg broker.Config, queue string, arguments map[string]any) {
	tb.Helper()

	if _, err := openRabbitMQ(tb, cfg).QueueDeclare(queue, true, false, false, false, amqp.Table(arguments)); err != nil {
		tb.Fatal(err)
	}
}
