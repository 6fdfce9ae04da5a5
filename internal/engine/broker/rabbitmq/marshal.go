package rabbitmq

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
)

// cloudEvents lists the prefixes of CloudEvents attributes in AMQP (AMQP binding
// 1.0.2, section 3.1.3.1). We write the first and read both, as well as Kafka's ce_.
var cloudEvents = []string{"cloudEvents:", "cloudEvents_"}

// Marshal builds a persistent AMQP message. Its ID and correlation ID are also set as
// properties.
func Marshal(msg *message.Message) amqp091.Publishing {
	headers := make(amqp091.Table, len(msg.Metadata)+1)
	for name, value := range driver.Sent(msg) {
		if attribute, ok := strings.CutPrefix(name, event.CloudEventsPrefix); ok {
			name = cloudEvents[0] + attribute
		}

		headers[name] = value
	}

	if key := msg.Metadata[event.HeaderKey]; key != "" {
		headers[cloudEvents[0]+"partitionkey"] = key
	}

	return amqp091.Publishing{
		Headers:       headers,
		ContentType:   msg.Metadata[event.HeaderContentType],
		DeliveryMode:  amqp091.Persistent,
		MessageId:     msg.UUID,
		CorrelationId: msg.Metadata[event.HeaderCorrelation],
		Timestamp:     time.Now(),
		Body:          msg.Payload,
	}
}

// Unmarshal builds a message. It accepts all messages, because a refused one would be
// redelivered indefinitely. A message without an ID gets a new one on each delivery,
// because AMQP offers no other way to identify it. Handlers then rely on the aggregate's
// ID.
func Unmarshal(delivery amqp091.Delivery) *message.Message {
	headers := make(event.Headers, len(delivery.Headers)+2)
	for name, value := range delivery.Headers {
		for _, prefix := range cloudEvents {
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

	id := driver.Identity{Native: event.NativeID{ID: delivery.MessageId, Source: delivery.AppId}, Origin: origin}

	return driver.Received(headers, id, delivery.Body)
}

// text formats a header value of any AMQP type.
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
