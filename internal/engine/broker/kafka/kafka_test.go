package kafka_test

import (
	"strings"
	"testing"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/broker/kafka"
	"github.com/millracehq/millrace/internal/test/brokertest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, harness(brokertest.Address(t, brokertest.Kafka)))
}

// TestRestart runs without the race detector: the client library has data races
// when it reconnects.
func TestRestart(t *testing.T) {
	t.Parallel()
	brokertest.WithoutRaceDetector(t)

	server := brokertest.NewServer(t, "kafka.sh")
	harness("127.0.0.1:"+server.Port).SurviveRestart(t, server)
}

func harness(address string) brokertest.Harness {
	cfg := broker.DefaultConfig()
	cfg.Kind = broker.Kafka
	cfg.Kafka.Brokers = strings.Split(address, ",")
	cfg.Kafka.Partitions = 4 // a test needs no more

	return brokertest.Harness{Config: cfg, Produce: brokertest.ProduceKafka, Durable: true, StableIDs: true}
}

func TestWireFormat(t *testing.T) {
	t.Parallel()

	record, err := kafka.Marshaler{}.Marshal("orders.completed", brokertest.Outgoing())
	if err != nil {
		t.Fatal(err)
	}

	key, _ := record.Key.Encode()
	value, _ := record.Value.Encode()
	headers := map[string]string{}

	for _, h := range record.Headers {
		headers[string(h.Key)] = string(h.Value)
	}

	brokertest.Golden(t, brokertest.Wire{Key: string(key), Headers: headers, Body: value})
}

func TestRepeatedHeadersAreKept(t *testing.T) {
	t.Parallel()

	msg, err := kafka.Marshaler{}.Unmarshal(&sarama.ConsumerMessage{Headers: []*sarama.RecordHeader{
		{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("a"), Value: []byte("2")}, nil, {Key: []byte("a"), Value: []byte("3")},
	}})
	if err != nil || msg.Metadata["a"] != "1" || msg.Metadata["a#2"] != "2" || msg.Metadata["a#3"] != "3" {
		t.Errorf("got %v, %v", msg, err)
	}
}

func FuzzKafkaUnmarshal(f *testing.F) {
	f.Add("topic", []byte("key"), "header", []byte("value"), []byte("{}"))

	f.Fuzz(func(t *testing.T, topic string, key []byte, name string, value, payload []byte) {
		msg, err := kafka.Marshaler{}.Unmarshal(&sarama.ConsumerMessage{
			Topic: topic, Key: key, Value: payload, Headers: []*sarama.RecordHeader{{Key: []byte(name), Value: value}},
		})
		if err != nil || len(msg.UUID) != 36 || string(msg.Payload) != string(payload) {
			t.Errorf("got %v, %v", msg, err)
		}
	})
}
