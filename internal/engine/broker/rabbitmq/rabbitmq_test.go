package rabbitmq_test

import (
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/rabbitmq"
)

func TestHeadersOfEveryTypeAreAccepted(t *testing.T) {
	t.Parallel()

	headers := amqp091.Table{
		"int": int32(7), "bool": true, "nil": nil, "bytes": []byte{0xff}, "time": time.Unix(0, 0),
		"table": amqp091.Table{"x": int64(1)}, "list": []any{"a", int16(2)}, "decimal": amqp091.Decimal{Scale: 2, Value: 123}, "float": 1.5,
	}

	msg := rabbitmq.Unmarshal(amqp091.Delivery{Headers: headers})

	for name, want := range map[string]string{
		"int": "7", "bool": "true", "nil": "", "bytes": "\xff", "time": "1970-01-01T00:00:00Z", "table": `{"x":1}`, "list": `["a",2]`, "float": "1.5",
	} {
		if msg.Metadata[name] != want {
			t.Errorf("%s: got %q, expected %q", name, msg.Metadata[name], want)
		}
	}
}

func FuzzRabbitMQUnmarshal(f *testing.F) {
	f.Add("id", "header", "value", []byte("{}"))

	f.Fuzz(func(t *testing.T, id, name, value string, payload []byte) {
		msg := rabbitmq.Unmarshal(amqp091.Delivery{
			MessageId: id, Body: payload,
			Headers: amqp091.Table{name: value, "nested": amqp091.Table{name: []any{value}}},
		})
		if len(msg.UUID) != 36 || string(msg.Payload) != string(payload) {
			t.Errorf("got %v", msg)
		}
	})
}
