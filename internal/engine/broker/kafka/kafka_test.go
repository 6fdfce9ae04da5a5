package kafka_test

import (
	"testing"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker/kafka"
)

func TestRepeatedHeadersAreKept(t *testing.T) {
	t.Parallel()

	msg := kafka.Unmarshal(&sarama.ConsumerMessage{Headers: []*sarama.RecordHeader{
		{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("a"), Value: []byte("2")}, nil, {Key: []byte("a"), Value: []byte("3")},
	}})
	if msg.Metadata["a"] != "1" || msg.Metadata["a#2"] != "2" || msg.Metadata["a#3"] != "3" {
		t.Errorf("got %v", msg)
	}
}

func FuzzKafkaUnmarshal(f *testing.F) {
	f.Add("topic", []byte("key"), "header", []byte("value"), []byte("{}"))

	f.Fuzz(func(t *testing.T, topic string, key []byte, name string, value, payload []byte) {
		msg := kafka.Unmarshal(&sarama.ConsumerMessage{
			Topic: topic, Key: key, Value: payload, Headers: []*sarama.RecordHeader{{Key: []byte(name), Value: value}},
		})
		if len(msg.UUID) != 36 || string(msg.Payload) != string(payload) {
			t.Errorf("got %v", msg)
		}
	})
}
