package event

import (
	"crypto/sha256"
	"encoding/binary"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// Message is an event as it travels: bytes and headers, not yet decoded.
type Message struct {
	ID    uuid.UUID
	Topic string
	// Key orders messages: one partition, one lane, one after the other.
	Key     string
	Headers Headers
	Payload []byte
}

// Headers are the headers of a message. Values are kept byte for byte and so
// need not be valid UTF-8.
type Headers map[string]string

// CloudEventsPrefix begins the names of CloudEvents attributes among headers.
const CloudEventsPrefix = "ce_"

// Header names that Millrace reads and writes. The ce_ names are the binary
// content mode of CloudEvents 1.0; the first is Watermill's own.
const (
	HeaderWatermillID = "_watermill_message_uuid"
	HeaderID          = "ce_id"
	HeaderSource      = "ce_source"
	HeaderType        = "ce_type"
	HeaderSpecVersion = "ce_specversion"
	HeaderTime        = "ce_time"
	HeaderContentType = "content-type"
	HeaderCorrelation = "correlation_id"
	HeaderCausation   = "causation_id"
	// HeaderTraceParent is that of W3C Trace Context.
	HeaderTraceParent = "traceparent"
)

// Source is the CloudEvents source of every message that Millrace publishes.
const Source = "millrace"

// ReservedPrefix marks headers that exist only inside the process: a
// subscriber adds them, a publisher never sends them.
const ReservedPrefix = "millrace_"

// Reserved headers.
const (
	// HeaderKey carries the key between the relay, the broker's marshaler and
	// the consumer. The marshaler turns it into what the broker knows as a key.
	HeaderKey = ReservedPrefix + "key"
	// HeaderOrigin says where a message was read, for example
	// "kafka:orders.created/3@42".
	HeaderOrigin = ReservedPrefix + "origin"
	// HeaderAttempts is how often a message failed before, and HeaderParked the
	// sequence number of a parked message that is tried again.
	HeaderAttempts = ReservedPrefix + "attempts"
	HeaderParked   = ReservedPrefix + "parked"
)

// namespace is the UUIDv5 name space of ids that other systems gave.
var namespace = uuid.MustParse("4f2c5f0e-4f6d-5d0c-9a55-6d1a3a3f5c11")

// NewID returns a new message id: a UUIDv7, so ids sort by time of creation.
func NewID() uuid.UUID {
	return uuid.Must(uuid.NewV7())
}

// ForeignID derives a message id from the identity that another system gave
// the message. The same parts always give the same id.
func ForeignID(parts ...string) uuid.UUID {
	return uuid.NewSHA1(namespace, []byte(strings.Join(parts, "\x00")))
}

// IdentifyMessage finds the id of a message by its headers, in this order:
// Watermill's header, ce_id with ce_source, nativeID (the AMQP message_id).
// When none is there the id is derived from origin, which must be the same for
// every delivery of the message and for no other message. With an empty origin
// too, the id is new.
func IdentifyMessage(h Headers, nativeID, origin string) uuid.UUID {
	if id := h[HeaderWatermillID]; id != "" {
		return parseOrDerive(id, "watermill")
	}

	if id := h[HeaderID]; id != "" {
		return ForeignID("cloudevents", h[HeaderSource], id)
	}

	switch {
	case nativeID != "":
		return parseOrDerive(nativeID, "native")
	case origin != "":
		return ForeignID("origin", origin)
	default:
		return NewID()
	}
}

// MetaOf returns the place of the message id in its conversation by its
// headers. They are hints from outside: what is no UUID or no traceparent is
// replaced or left out.
func MetaOf(id uuid.UUID, h Headers) Meta {
	meta := Meta{ID: id, Correlation: id}

	if correlation, err := uuid.Parse(h[HeaderCorrelation]); err == nil {
		meta.Correlation = correlation
	}

	if causation, err := uuid.Parse(h[HeaderCausation]); err == nil {
		meta.Causation = causation
	}

	for _, name := range []string{HeaderTraceParent, CloudEventsPrefix + HeaderTraceParent} {
		if value := h[name]; traceParent.MatchString(value) {
			meta.Trace = value

			break
		}
	}

	return meta
}

// traceParent is the form of the header: W3C Trace Context, section 3.2.
var traceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func parseOrDerive(id, kind string) uuid.UUID {
	if len(id) == 36 { // the canonical form only: other spellings would alias
		if parsed, err := uuid.Parse(id); err == nil && parsed.String() == id {
			return parsed
		}
	}

	return ForeignID(kind, id)
}

// Fingerprint is a digest of a payload, to tell a redelivery from another
// message under the same id: the first 8 bytes of its SHA-256.
func Fingerprint(payload []byte) int64 {
	sum := sha256.Sum256(payload)

	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // all 64 bits are wanted, as a signed bigint
}
