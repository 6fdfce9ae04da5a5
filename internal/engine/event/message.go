package event

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// Message is an event in transit: bytes and headers, not yet decoded.
type Message struct {
	ID    uuid.UUID
	Topic string
	// Key orders messages: messages with the same key are processed in sequence.
	Key     string
	Headers Headers
	Payload []byte
}

// maxKey is the maximum length of the key of a message to publish, in bytes.
const maxKey = 2000

// Check returns an error if the message cannot be stored and published as it is. Its
// payload and its headers may be any bytes.
func (m Message) Check() error {
	if len(m.Key) > maxKey {
		return fmt.Errorf("key: has %d bytes, expected at most %d", len(m.Key), maxKey)
	}

	if err := Storable(m.Key); err != nil {
		return fmt.Errorf("key: %w", err)
	}

	return nil
}

// Headers are the headers of a message. Values are arbitrary bytes, not
// necessarily UTF-8.
type Headers map[string]string

// CloudEventsPrefix is the prefix of CloudEvents attributes among the headers.
const CloudEventsPrefix = "ce_"

// Headers that Millrace reads and writes. The first is Watermill's. The ce_ names
// follow the binary content mode of CloudEvents 1.0.
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
	// HeaderTraceParent and HeaderTraceState are defined by W3C Trace Context, and, with
	// the prefix ce_, by the distributed tracing extension of CloudEvents.
	HeaderTraceParent = "traceparent"
	HeaderTraceState  = "tracestate"
)

// Source is the CloudEvents source of all messages that Millrace publishes.
const Source = "millrace"

// ReservedPrefix is the prefix of headers that exist only inside the process:
// subscribers add them, publishers do not send them.
const ReservedPrefix = "millrace_"

// Reserved headers.
const (
	// HeaderKey carries the key between the relay, the broker's marshaler and the
	// consumer. The marshaler converts it to the broker's native key.
	HeaderKey = ReservedPrefix + "key"
	// HeaderOrigin records where a message was read, for example
	// "kafka:orders.created/3@42".
	HeaderOrigin = ReservedPrefix + "origin"
	// HeaderWritten is the time when the message was written to the broker's log, in
	// RFC 3339. A broker that keeps a log may deliver messages again long after they
	// were acknowledged.
	HeaderWritten = ReservedPrefix + "written"
)

// namespace is the UUIDv5 namespace of derived IDs.
var namespace = uuid.MustParse("4f2c5f0e-4f6d-5d0c-9a55-6d1a3a3f5c11")

// NewID returns a new message ID. It is a UUIDv7, so IDs sort by creation time.
func NewID() uuid.UUID {
	return uuid.Must(uuid.NewV7())
}

// ForeignID derives a message ID from the ID that another system assigned. The same
// parts always give the same ID.
func ForeignID(parts ...string) uuid.UUID {
	return uuid.NewSHA1(namespace, []byte(strings.Join(parts, "\x00")))
}

// MetaOf reads the message's place in its conversation from its headers. It ignores
// malformed values.
func MetaOf(id uuid.UUID, h Headers) Meta {
	meta := Meta{ID: id, Correlation: id}

	if correlation, err := uuid.Parse(h[HeaderCorrelation]); err == nil {
		meta.Correlation = correlation
	}

	if causation, err := uuid.Parse(h[HeaderCausation]); err == nil {
		meta.Causation = causation
	}

	for _, prefix := range []string{"", CloudEventsPrefix} {
		if value := h[prefix+HeaderTraceParent]; value != "" && traceParent.MatchString(value) {
			meta.Trace, meta.TraceState = value, h[prefix+HeaderTraceState]

			break
		}
	}

	return meta
}

// traceParent matches a valid traceparent header (W3C Trace Context, section 3.2).
var traceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// TraceAttrs returns the IDs of a traceparent for the log, or nothing if it is empty.
func TraceAttrs(traceParent string) []slog.Attr {
	parts := strings.Split(traceParent, "-")
	if len(parts) != 4 {
		return nil
	}

	return []slog.Attr{slog.String("trace_id", parts[1]), slog.String("span_id", parts[2])}
}

// Fingerprint returns the first 8 bytes of the payload's SHA-256. It distinguishes a
// redelivery from a different message with the same ID.
func Fingerprint(payload []byte) int64 {
	sum := sha256.Sum256(payload)

	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // keeps all 64 bits, as a signed bigint
}
