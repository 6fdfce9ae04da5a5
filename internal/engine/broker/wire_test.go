package broker_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/kafka"
	"github.com/millracehq/millrace/internal/engine/broker/rabbitmq"
	"github.com/millracehq/millrace/internal/engine/event"
)

var update = flag.Bool("update", false, "write the golden files")

// outgoing returns the message whose wire format is in the golden files.
func outgoing() *message.Message {
	msg := message.NewMessage("01890a5d-ac96-774b-bcce-b302099a8057", []byte(`{"order_id":"order_123"}`))
	msg.Metadata = message.Metadata{
		event.HeaderKey: "order_123", event.HeaderOrigin: "never sent", event.HeaderID: msg.UUID, event.HeaderSource: event.Source,
		event.HeaderType: "orders.completed", event.HeaderSpecVersion: "1.0", event.HeaderTime: "2026-01-02T03:04:05Z",
		event.HeaderContentType: "application/json", event.HeaderCorrelation: msg.UUID,
	}

	return msg
}

// wire is a message as a broker stores it.
type wire struct {
	Key        string            `json:"key,omitempty"`
	Properties map[string]string `json:"properties,omitempty"`
	Headers    map[string]string `json:"headers"`
	Body       json.RawMessage   `json:"body"`
}

// golden compares a message with a file in testdata, or writes the file with -update.
func golden(tb testing.TB, name string, w wire) {
	tb.Helper()

	path := filepath.Join("testdata", name+".golden")

	got, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		tb.Fatal(err)
	}

	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o600); err != nil {
			tb.Fatal(err)
		}
	}

	want, err := os.ReadFile(path)
	if err != nil {
		tb.Fatalf("%v: run the test with -update", err)
	}

	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		tb.Error(diff)
	}
}

func TestKafkaWireFormat(t *testing.T) {
	t.Parallel()

	record := kafka.Marshal(outgoing())
	headers := map[string]string{}

	for _, h := range record.Headers {
		headers[string(h.Key)] = string(h.Value)
	}

	golden(t, "kafka", wire{Key: string(record.Key), Headers: headers, Body: record.Value})
}

func TestRabbitMQWireFormat(t *testing.T) {
	t.Parallel()

	publishing := rabbitmq.Marshal(outgoing())
	headers := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(publishing.Headers)) {
		headers[name] = fmt.Sprint(publishing.Headers[name])
	}

	if publishing.DeliveryMode != amqp091.Persistent {
		t.Error("the message is not persistent")
	}

	golden(t, "rabbitmq", wire{
		Properties: map[string]string{"message_id": publishing.MessageId, "content_type": publishing.ContentType},
		Headers:    headers, Body: publishing.Body,
	})
}
