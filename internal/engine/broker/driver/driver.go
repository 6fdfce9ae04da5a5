// Package driver defines the interface that brokers implement and holds their shared
// code. It relates to package broker as database/sql/driver does to database/sql.
package driver

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/telemetry"
)

// Topic is a topic to declare on a broker.
type Topic struct {
	Name string
	// Consumed is true if this service consumes the topic.
	Consumed bool
}

// Driver is a connection to one broker. New drivers are not connected.
type Driver interface {
	// Connect connects to the broker and declares the topology. It may be called
	// again after an error.
	Connect(ctx context.Context, topics []Topic) error
	// Publisher returns the publisher, after Connect.
	Publisher() message.Publisher
	// Subscriber returns a subscriber for one topic, which delivers messages with the
	// same key in order. key returns the key of a message that has none in its headers.
	// Call it after Connect; the caller closes the subscriber.
	Subscriber(topic string, key func(payload []byte) string) (message.Subscriber, error)
	// Lanes returns the number of keys to publish messages of concurrently.
	Lanes() int
	// Run returns the maximum number of messages with the same key to pass to
	// one call of Publish. It is greater than 1 only if Publish writes nothing behind a
	// message that it could not write.
	Run() int
	Ping(ctx context.Context) error
	// Refusals returns the topics whose subscriptions the broker refuses, sorted by name.
	// It answers from memory.
	Refusals() []Refusal
	// Backlogs returns what the broker holds for consumed topics. It does not need
	// Connect: it uses a connection of its own, so that a command can ask while the
	// service is not running. It returns when ctx ends, whether or not the broker
	// answers.
	Backlogs(ctx context.Context, topics []string) ([]Backlog, error)
	Close() error
}

// Backlog is what a broker holds for a topic that this service consumes.
type Backlog struct {
	Topic string
	// Messages is the number of messages waiting at the broker.
	Messages int64
	// Partitions is the number waiting in each partition, if the broker has partitions.
	Partitions map[int32]int64
	// Subscriptions is the number of subscriptions that the broker has for this service,
	// across all processes.
	Subscriptions int
	// Retention is how long the broker keeps acknowledged messages: 0 if it does not
	// keep them or if that is unknown, Forever if there is no limit.
	Retention time.Duration
	// Err says why the topic could not be measured.
	Err error
}

// Forever is the retention of a topic that keeps all messages.
const Forever time.Duration = math.MaxInt64

// Tailer is a driver that can read messages without consuming them.
type Tailer interface {
	// Tail calls fn with each message that arrives on a topic from now on, until ctx
	// ends or fn fails. It takes no messages away from consumers and does not need
	// Connect.
	Tail(ctx context.Context, topic string, fn func(*message.Message) error) error
}

// ErrClosed reports that the connection closed before the broker confirmed the
// message. The broker may or may not have stored it.
var ErrClosed = errors.New("broker connection closed")

// ErrBlocked reports that the broker is connected but accepts no messages until it has
// more memory or disk space. It still delivers messages.
var ErrBlocked = errors.New("the broker is not accepting messages")

// Identity is what a broker knows about a message beyond its headers and payload.
type Identity struct {
	// Native is the broker's own message id, if it has one.
	Native event.NativeID
	Key    string
	// Origin tells operators where the message was read.
	Origin string
	// Written is when the message was written to a log that may deliver it again long
	// after it was acknowledged. Zero if that time is unknown, or if the broker has no
	// such log.
	Written time.Time
	// Coordinates identify the message across redeliveries. Empty if the broker has
	// none.
	Coordinates string
}

// HeaderPartitionKey carries the key of a message whose broker has no property for it.
// It is the CloudEvents partitioning extension.
const HeaderPartitionKey = event.CloudEventsPrefix + "partitionkey"

// Received builds the message that the router gets. It unpacks CloudEvents in
// structured mode, and renames foreign headers that would be mistaken for reserved
// ones.
func Received(headers event.Headers, id Identity, payload []byte) *message.Message {
	payload = event.Unwrap(headers, payload)

	for name, value := range headers {
		if strings.HasPrefix(name, event.ReservedPrefix) {
			delete(headers, name)
			headers["x-"+name] = value
		}
	}

	msg := message.NewMessage(event.IdentifyMessage(headers, id.Native, id.Coordinates).String(), payload)
	msg.Metadata = message.Metadata(headers)
	msg.Metadata[event.HeaderKey] = cmp.Or(id.Key, headers[HeaderPartitionKey])
	msg.Metadata[event.HeaderOrigin] = id.Origin

	if !id.Written.IsZero() {
		msg.Metadata[event.HeaderWritten] = id.Written.UTC().Format(time.RFC3339Nano)
	}

	return msg
}

// Sent yields the headers to send to the broker.
func Sent(msg *message.Message) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for name, value := range msg.Metadata {
			if strings.HasPrefix(name, event.ReservedPrefix) || name == event.HeaderWatermillID {
				continue
			}

			if !yield(name, value) {
				return
			}
		}

		yield(event.HeaderWatermillID, msg.UUID)
	}
}

// WatermillLogger returns a logger for Watermill's publishers and subscribers. They
// log errors at level Error even when they recover from them.
func WatermillLogger(logger *slog.Logger) watermill.LoggerAdapter {
	return telemetry.Watermill(logger, slog.LevelWarn)
}
