// Package driver defines what an implementation of a broker provides, and
// holds the code that the implementations share. It relates to package broker
// as database/sql/driver relates to database/sql.
package driver

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/telemetry"
)

// Topic is a topic as a broker needs to know it.
type Topic struct {
	Name string
	// Consumed says that this service consumes the topic.
	Consumed bool
}

// Driver is one broker. New instances are not connected.
type Driver interface {
	// Connect reaches the broker and declares the topology. It may be called
	// again after an error.
	Connect(ctx context.Context, topics []Topic) error
	// Publisher returns the publisher, after Connect.
	Publisher() message.Publisher
	// Subscriber returns a subscriber for one topic, after Connect. The caller
	// closes it.
	Subscriber(topic string) (message.Subscriber, error)
	// Lanes is how many messages are worth publishing at once.
	Lanes() int
	Ping(ctx context.Context) error
	Close() error
}

// Tailer is a driver whose broker lets others read along.
type Tailer interface {
	// Tail calls fn with each message that arrives on a topic from now on, until
	// ctx ends or fn fails. It takes no message from a consumer. It needs no
	// Connect.
	Tail(ctx context.Context, topic string, fn func(*message.Message) error) error
}

// ErrClosed reports that the connection was closed before the broker confirmed
// the message. The broker may or may not have it.
var ErrClosed = errors.New("broker connection closed")

// Identity is what a broker knows about a message besides headers and payload.
type Identity struct {
	// NativeID is the broker's own message id, if it has one.
	NativeID string
	Key      string
	// Origin says where the message was read, for operators.
	Origin string
	// Coordinates are the same for each delivery of the message and for no
	// other message. Empty if the broker has none.
	Coordinates string
}

// Received makes the message that the router gets. It renames headers from
// outside that would pass for reserved ones.
func Received(headers event.Headers, id Identity, payload []byte) *message.Message {
	for name, value := range headers {
		if strings.HasPrefix(name, event.ReservedPrefix) {
			delete(headers, name)
			headers["x-"+name] = value
		}
	}

	msg := message.NewMessage(event.IdentifyMessage(headers, id.NativeID, id.Coordinates).String(), payload)
	msg.Metadata = message.Metadata(headers)
	msg.Metadata[event.HeaderKey] = id.Key
	msg.Metadata[event.HeaderOrigin] = id.Origin

	return msg
}

// Sent returns the headers that leave the process.
func Sent(msg *message.Message) event.Headers {
	headers := make(event.Headers, len(msg.Metadata)+1)

	for name, value := range msg.Metadata {
		if !strings.HasPrefix(name, event.ReservedPrefix) {
			headers[name] = value
		}
	}

	headers[event.HeaderWatermillID] = msg.UUID

	return headers
}

// WatermillLogger returns a logger for Watermill's publishers and subscribers.
// They log at Error what they then recover from.
func WatermillLogger(logger *slog.Logger) watermill.LoggerAdapter {
	return telemetry.Watermill(logger, slog.LevelWarn)
}
