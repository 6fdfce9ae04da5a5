package event_test

import (
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
)

// TestMessagesOfOtherSystemsAreIdentified compares the same message at two coordinates, as
// a producer that sends it twice does.
func TestMessagesOfOtherSystemsAreIdentified(t *testing.T) {
	t.Parallel()

	const id, other = "4d47e190-0402-4048-bc2c-89dd54343cdc", "0d7e6e4f-9f1d-4c5b-9f6c-8a2f3a3c9b11"

	type headers = event.Headers

	for name, c := range map[string]struct {
		headers, differ headers
		native          event.NativeID
	}{
		"Debezium's outbox event router": {headers: headers{"id": id}, differ: headers{"id": other}},
		"Debezium's, from MongoDB":       {headers: headers{"id": "596e275826f08b2730779e1f"}, differ: headers{"id": "596e275826f08b2730779e20"}},
		"Spring, as JSON":                {headers: headers{"id": `"` + id + `"`, "spring_json_header_types": `{"id":"java.util.UUID"}`}, differ: headers{"id": `"` + other + `"`}},
		"MassTransit":                    {headers: headers{"MessageId": id, "MT-Source-Address": "loopback://host/a"}, differ: headers{"MessageId": other}},
		"NServiceBus":                    {headers: headers{"NServiceBus.MessageId": "order-1"}, differ: headers{"NServiceBus.MessageId": "order-2"}},
		"NServiceBus, another endpoint": {
			headers: headers{"NServiceBus.MessageId": "1", "NServiceBus.OriginatingEndpoint": "Sales"},
			differ:  headers{"NServiceBus.MessageId": "1", "NServiceBus.OriginatingEndpoint": "Billing"},
		},
		"Dapr":                     {headers: headers{"ce_id": id, "ce_source": "sales"}, differ: headers{"ce_id": id, "ce_source": "billing"}},
		"an AMQP message_id":       {native: event.NativeID{ID: "1"}, headers: headers{"id": other}},
		"an AMQP app_id":           {native: event.NativeID{ID: "1", Source: "sales"}},
		"CloudEvents come first":   {headers: headers{"ce_id": "1", "id": id, "MessageId": id}, differ: headers{"ce_id": "2", "id": id, "MessageId": id}},
		"NServiceBus before names": {headers: headers{"NServiceBus.MessageId": "1", "MessageId": id}, differ: headers{"NServiceBus.MessageId": "2", "MessageId": id}},
	} {
		first := event.IdentifyMessage(c.headers, c.native, "kafka:t/0@1")

		if again := event.IdentifyMessage(c.headers, c.native, "kafka:t/0@2"); again != first {
			t.Errorf("%s: a message that is sent twice has two IDs", name)
		}

		if c.differ != nil && event.IdentifyMessage(c.differ, c.native, "kafka:t/0@1") == first {
			t.Errorf("%s: another message has the same ID", name)
		}
	}
}

// A header named id may identify anything.
func TestIDsThatMayBeOfAnythingAreNotOfTheMessage(t *testing.T) {
	t.Parallel()

	for _, headers := range []event.Headers{{"id": "42"}, {"id": "order_123"}, {"id": ""}, {"ID": "4d47e190-0402-4048-bc2c-89dd54343cdc"}, {"MessageId": "7"}} {
		if event.IdentifyMessage(headers, event.NativeID{}, "kafka:t/0@1") == event.IdentifyMessage(headers, event.NativeID{}, "kafka:t/0@2") {
			t.Errorf("%v identifies two records", headers)
		}
	}
}

func TestSystemsDoNotShareIDs(t *testing.T) {
	t.Parallel()

	const id = "4d47e190-0402-4048-bc2c-89dd54343cdc"

	seen := map[string]string{}

	for name, got := range map[string]string{
		"NServiceBus": event.IdentifyMessage(event.Headers{"NServiceBus.MessageId": id}, event.NativeID{}, "").String(),
		"MassTransit": event.IdentifyMessage(event.Headers{"MessageId": id}, event.NativeID{}, "").String(),
		"Debezium":    event.IdentifyMessage(event.Headers{"id": id}, event.NativeID{}, "").String(),
		"Dapr":        event.IdentifyMessage(event.Headers{"ce_id": id}, event.NativeID{}, "").String(),
		"sales":       event.IdentifyMessage(nil, event.NativeID{ID: "1", Source: "sales"}, "").String(),
		"billing":     event.IdentifyMessage(nil, event.NativeID{ID: "1", Source: "billing"}, "").String(),
		"nobody":      event.IdentifyMessage(nil, event.NativeID{ID: "1"}, "").String(),
	} {
		if other := seen[got]; other != "" {
			t.Errorf("%s and %s share an ID", name, other)
		}

		seen[got] = name
	}
}
