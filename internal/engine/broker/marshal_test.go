package broker

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/event"
)

var update = flag.Bool("update", false, "write the golden files")

func outgoing() *message.Message {
	msg := message.NewMessage("01890a5d-ac96-774b-bcce-b302099a8057", []byte(`{"order_id":"order_123"}`))
	msg.Metadata = message.Metadata{
		event.HeaderKey: "order_123", event.HeaderOrigin: "never sent", event.HeaderID: msg.UUID, event.HeaderSource: event.Source,
		event.HeaderType: "orders.completed", event.HeaderSpecVersion: "1.0", event.HeaderTime: "2026-01-02T03:04:05Z",
		event.HeaderContentType: "application/json", event.HeaderCorrelation: msg.UUID,
	}

	return msg
}

// wire is what a broker holds.
type wire struct {
	Key        string            `json:"key,omitempty"`
	Properties map[string]string `json:"properties,omitempty"`
	Headers    map[string]string `json:"headers"`
	Body       json.RawMessage   `json:"body"`
}

func TestWireFormatOfKafka(t *testing.T) {
	t.Parallel()

	record, err := kafkaMarshaler{}.Marshal("orders.completed", outgoing())
	if err != nil {
		t.Fatal(err)
	}

	key, _ := record.Key.Encode()
	value, _ := record.Value.Encode()
	headers := map[string]string{}

	for _, h := range record.Headers {
		headers[string(h.Key)] = string(h.Value)
	}

	golden(t, "kafka.golden", wire{Key: string(key), Headers: headers, Body: value})
}

func TestWireFormatOfRabbitMQ(t *testing.T) {
	t.Parallel()

	publishing, err := rabbitMarshaler{}.Marshal(outgoing())
	if err != nil {
		t.Fatal(err)
	}

	headers := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(publishing.Headers)) {
		headers[name] = text(publishing.Headers[name])
	}

	if publishing.DeliveryMode != amqp091.Persistent {
		t.Error("the message is not persistent")
	}

	golden(t, "rabbitmq.golden", wire{
		Properties: map[string]string{"message_id": publishing.MessageId, "content_type": publishing.ContentType},
		Headers:    headers, Body: publishing.Body,
	})
}

func golden(t *testing.T, name string, w wire) {
	t.Helper()

	got, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		t.Fatal(err)
	}

	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run the test with -update", err)
	}

	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestRepeatedKafkaHeadersAreKept(t *testing.T) {
	t.Parallel()

	msg, err := kafkaMarshaler{}.Unmarshal(&sarama.ConsumerMessage{Headers: []*sarama.RecordHeader{
		{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("a"), Value: []byte("2")}, nil, {Key: []byte("a"), Value: []byte("3")},
	}})
	if err != nil || msg.Metadata["a"] != "1" || msg.Metadata["a#2"] != "2" || msg.Metadata["a#3"] != "3" {
		t.Errorf("got %v, %v", msg, err)
	}
}

func TestAMQPHeadersOfEveryTypeAreTaken(t *testing.T) {
	t.Parallel()

	headers := amqp091.Table{
		"int": int32(7), "bool": true, "nil": nil, "bytes": []byte{0xff}, "time": time.Unix(0, 0),
		"table": amqp091.Table{"x": int64(1)}, "list": []any{"a", int16(2)}, "decimal": amqp091.Decimal{Scale: 2, Value: 123}, "float": 1.5,
	}

	msg, err := rabbitMarshaler{}.Unmarshal(amqp091.Delivery{Acknowledger: ackNothing{}, Headers: headers})
	if err != nil {
		t.Fatal(err)
	}

	for name, want := range map[string]string{
		"int": "7", "bool": "true", "nil": "", "bytes": "\xff", "time": "1970-01-01T00:00:00Z", "table": `{"x":1}`, "list": `["a",2]`, "float": "1.5",
	} {
		if msg.Metadata[name] != want {
			t.Errorf("%s: got %q, expected %q", name, msg.Metadata[name], want)
		}
	}
}

func TestThePhantomOfAClosedChannelIsNoMessage(t *testing.T) {
	t.Parallel()

	if _, err := (rabbitMarshaler{}).Unmarshal(amqp091.Delivery{}); err == nil {
		t.Error("a delivery that cannot be answered became a message")
	}
}

type ackNothing struct{}

func (ackNothing) Ack(uint64, bool) error        { return nil }
func (ackNothing) Nack(uint64, bool, bool) error { return nil }
func (ackNothing) Reject(uint64, bool) error     { return nil }

func FuzzKafkaUnmarshal(f *testing.F) {
	f.Add("topic", []byte("key"), "header", []byte("value"), []byte("{}"))

	f.Fuzz(func(t *testing.T, topic string, key []byte, name string, value, payload []byte) {
		msg, err := kafkaMarshaler{}.Unmarshal(&sarama.ConsumerMessage{
			Topic: topic, Key: key, Value: payload, Headers: []*sarama.RecordHeader{{Key: []byte(name), Value: value}},
		})
		if err != nil || len(msg.UUID) != 36 || string(msg.Payload) != string(payload) {
			t.Errorf("got %v, %v", msg, err)
		}
	})
}

func FuzzRabbitMQUnmarshal(f *testing.F) {
	f.Add("id", "header", "value", []byte("{}"))

	f.Fuzz(func(t *testing.T, id, name, value string, payload []byte) {
		msg, err := rabbitMarshaler{}.Unmarshal(amqp091.Delivery{
			Acknowledger: ackNothing{}, MessageId: id, Body: payload,
			Headers: amqp091.Table{name: value, "nested": amqp091.Table{name: []any{value}}},
		})
		if err != nil || len(msg.UUID) != 36 || string(msg.Payload) != string(payload) {
			t.Errorf("got %v, %v", msg, err)
		}
	})
}
