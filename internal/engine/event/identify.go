package event

import (
	"encoding/hex"
	"strings"

	"github.com/google/uuid"
)

// NativeID is the message ID of a broker that has one.
type NativeID struct {
	ID string
	// Source names whoever assigned the ID, if the broker knows. Another source may
	// assign the same ID.
	Source string
}

// IdentifyMessage determines the ID of a message from, in this order, Watermill's
// header, ce_id with ce_source, the native ID (the AMQP message_id), and the headers of
// other systems. Without any of them it derives the ID from coordinates, which must be
// unique to the message and stable across redeliveries. If those are empty too, the ID is
// random.
func IdentifyMessage(h Headers, native NativeID, coordinates string) uuid.UUID {
	if id := h[HeaderWatermillID]; id != "" {
		return parseOrDerive(id, "watermill")
	}

	if id := h[HeaderID]; id != "" {
		return ForeignID("cloudevents", h[HeaderSource], id)
	}

	if native.ID != "" && native.Source != "" {
		return parseOrDerive(native.ID, "native", native.Source)
	}

	if native.ID != "" {
		return parseOrDerive(native.ID, "native")
	}

	if parts := identifiedElsewhere(h); parts != nil {
		return ForeignID(parts...)
	}

	if coordinates != "" {
		return ForeignID("origin", coordinates)
	}

	return NewID()
}

// identifiedElsewhere returns the parts of an ID that another system assigned, or nil.
func identifiedElsewhere(h Headers) (parts []string) {
	// Applications may choose these IDs, so they are unique only within an endpoint.
	if id := h["NServiceBus.MessageId"]; id != "" {
		return []string{"nservicebus", h["NServiceBus.OriginatingEndpoint"], id}
	}

	// MassTransit also sends this header with raw JSON.
	if id, ok := globalID(h["MessageId"]); ok {
		return []string{"masstransit", id}
	}

	// Debezium's outbox event router, and Spring's messages if their id is mapped.
	if id, ok := globalID(h["id"]); ok {
		return []string{"id", id}
	}

	return nil
}

// globalID reads the value of a header whose name says little. The value may identify
// anything, but if its format is meant to be unique everywhere, it counts as the
// message's ID. JSON converters quote the value.
func globalID(value string) (id string, ok bool) {
	value = strings.Trim(value, `"`)

	if len(value) == 36 {
		parsed, err := uuid.Parse(value)

		return parsed.String(), err == nil
	}

	if len(value) != 24 { // a MongoDB ObjectID
		return "", false
	}

	_, err := hex.DecodeString(value)

	return strings.ToLower(value), err == nil
}

// parseOrDerive returns id if it is a UUID, and otherwise derives a UUID from scope and id.
func parseOrDerive(id string, scope ...string) uuid.UUID {
	if len(id) == 36 { // only the canonical form: other spellings are different IDs
		if parsed, err := uuid.Parse(id); err == nil && parsed.String() == id {
			return parsed
		}
	}

	return ForeignID(append(scope, id)...)
}
