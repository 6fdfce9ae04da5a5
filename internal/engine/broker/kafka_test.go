package broker_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// producer returns another system's producer.
func producer(tb testing.TB, cfg broker.Config, change func(*sarama.Config)) sarama.SyncProducer {
	tb.Helper()

	settings := sarama.NewConfig()
	settings.Version = sarama.V3_0_0_0
	settings.Producer.Return.Successes = true
	change(settings)

	p, err := sarama.NewSyncProducer(cfg.Kafka.Brokers, settings)
	if err != nil {
		tb.Fatal(err)
	}

	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})

	return p
}

// transactional returns a producer whose records become visible once it commits them.
func transactional(tb testing.TB, cfg broker.Config) sarama.SyncProducer {
	tb.Helper()

	return producer(tb, cfg, func(settings *sarama.Config) {
		settings.Producer.Idempotent, settings.Producer.RequiredAcks, settings.Net.MaxOpenRequests = true, sarama.WaitForAll, 1
		settings.Producer.Transaction.ID = brokertest.Topic()
	})
}

func send(tb testing.TB, p sarama.SyncProducer, topic, key, value string) {
	tb.Helper()

	_, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder(key), Value: sarama.StringEncoder(value)})
	if err != nil {
		tb.Fatal(err)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()

	if err != nil {
		tb.Fatal(err)
	}
}

func payloads(r *received) string {
	var texts []string
	for _, msg := range r.all() {
		texts = append(texts, string(msg.Payload))
	}

	return strings.Join(texts, " ")
}

func TestKafkaDeliversWhatTransactionsCommit(t *testing.T) {
	t.Parallel()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	h.config.Kafka.Partitions = 1
	topic := brokertest.Topic()
	conn := h.open(t, topic)

	defer conn.Close()

	received := consume(t, conn, topic, nil)
	p := transactional(t, h.config)

	must(t, p.BeginTxn())
	send(t, p, topic, "k", "aborted")
	must(t, p.AbortTxn())

	must(t, p.BeginTxn())
	send(t, p, topic, "k", "committed")

	// Another producer's record is behind the open transaction.
	send(t, producer(t, h.config, func(*sarama.Config) {}), topic, "k", "behind")

	if got := payloads(received); got != "" {
		t.Errorf("%s arrived before the transaction was committed", got)
	}

	must(t, p.CommitTxn())

	received.wait(t, 2)

	if got := payloads(received); got != "committed behind" {
		t.Errorf("got %s, expected what was committed, in order", got)
	}
}

// The partitions are those computed by org.apache.kafka.common.utils.Utils (kafka-clients
// 3.9.1).
func TestKeysAreOnThePartitionsThatJavaChooses(t *testing.T) {
	t.Parallel()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	h.config.Kafka.Partitions = 12
	topic := brokertest.Topic()
	conn := h.open(t, topic)

	defer conn.Close()

	received := consume(t, conn, topic, nil)

	partitions := map[string]string{
		"a": "4", "ab": "2", "abc": "3", "abcd": "8", "21": "0", "order_123": "5", "user_42": "10", "grün": "5",
		"a-little-bit-long-string": "8", "order-9f1c2d7e-2b1a-4c9d-8a57-1e0f3b5a7c99": "10", "\x67\xf6\xff\x00": "10",
	}
	for key := range partitions {
		must(t, conn.Publisher().Publish(topic, newMessage(key, "{}")))
	}

	for _, msg := range received.wait(t, len(partitions)) {
		key, origin := msg.Metadata[event.HeaderKey], msg.Metadata[event.HeaderOrigin]
		if !strings.HasPrefix(origin, "kafka:"+topic+"/"+partitions[key]+"@") {
			t.Errorf("key %q is at %s, expected partition %s", key, origin, partitions[key])
		}
	}
}

// A record without an id is identified by its place and time. A recreated topic never
// repeats both.
func TestATopicMadeAnewHasNewMessages(t *testing.T) {
	t.Parallel()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	h.config.Kafka.Partitions = 1
	topic := brokertest.Topic()

	first := func() string {
		conn := h.open(t, topic)
		brokertest.ProduceKafka(t, h.config, topic, brokertest.Foreign{Payload: []byte("same")})
		id := consume(t, conn, topic, nil).wait(t, 1)[0].UUID
		must(t, conn.Close())

		return id
	}

	before := first()
	cluster := admin(t, h.config)
	must(t, cluster.DeleteTopic(topic))
	pgtest.Eventually(t, "the topic is gone", func() bool {
		found, err := cluster.DescribeTopics([]string{topic})

		return err == nil && errors.Is(found[0].Err, sarama.ErrUnknownTopicOrPartition)
	})

	if after := first(); after == before {
		t.Error("a message on the new topic has the id of one of the old topic")
	}
}
