// Package broker connects to the message broker: Kafka, RabbitMQ, or the
// embedded one that needs Postgres alone. It is the only importer of their
// drivers. Publishers and subscribers are Watermill's own; what is ours are
// the marshalers, which take every message as it is.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/telemetry"
)

// Topic is a topic as the routing table sees it.
type Topic struct {
	Name string
	// Consumer is who consumes the topic here, empty if nobody does.
	Consumer string
}

// driver is one kind of broker: there are three.
type driver interface {
	// connect reaches the broker and declares the topology; it may be called
	// again after an error.
	connect(ctx context.Context, topics []Topic) error
	publisher() message.Publisher
	subscriber(consumer string) message.Subscriber
	lanes() int
	ping(ctx context.Context) error
	close() error
}

// ErrClosed says that the connection was closed before the broker had
// confirmed the message: whether it has it is not known.
var ErrClosed = errors.New("broker connection closed")

// Conn is the connection to the broker.
type Conn struct {
	kind   string
	driver driver
	logger *slog.Logger
}

// New returns a connection to the configured broker, not yet established.
func New(cfg Config, logger *slog.Logger) (*Conn, error) {
	logger = logger.With(slog.String("component", "broker"), slog.String("broker", cfg.Kind))
	conn := &Conn{kind: cfg.Kind, logger: logger}

	switch cfg.Kind {
	case Embedded:
		conn.driver = newEmbedded(cfg.Embedded, logger)
	case Kafka:
		conn.driver = newKafka(cfg.Kafka, logger)
	case RabbitMQ:
		conn.driver = newRabbitMQ(cfg.RabbitMQ, logger)
	default:
		return nil, cfg.Validate()
	}

	return conn, nil
}

// Set is the brokers of a service: one that has all topics but those that are
// bound to others.
type Set struct {
	conns []*Conn // the first is the one for all else
	bound map[string]string
}

// NewSet returns connections to the configured brokers, not yet established.
func NewSet(cfg Config, logger *slog.Logger) (*Set, error) {
	bound, err := cfg.bound()
	if err != nil {
		return nil, err
	}

	set := &Set{bound: bound}
	kinds := slices.Sorted(maps.Values(bound))
	kinds = slices.DeleteFunc(slices.Compact(kinds), func(kind string) bool { return kind == cfg.Kind })

	for _, kind := range append([]string{cfg.Kind}, kinds...) {
		cfg.Kind = kind

		conn, err := New(cfg, logger)
		if err != nil {
			return nil, err
		}

		set.conns = append(set.conns, conn)
	}

	return set, nil
}

// Conns returns the connections; the first has every topic that is not bound.
func (s *Set) Conns() []*Conn { return s.conns }

// Has reports whether conn is the one for a topic.
func (s *Set) Has(conn *Conn, topic string) bool {
	kind, bound := s.bound[topic]

	return kind == conn.kind || !bound && conn == s.conns[0]
}

// Bound returns the topics that are bound to the broker of conn.
func (s *Set) Bound(conn *Conn) []string {
	var topics []string

	for topic, kind := range s.bound {
		if kind == conn.kind {
			topics = append(topics, topic)
		}
	}

	return topics
}

// Kinds returns the names of the brokers, for people.
func (s *Set) Kinds() string {
	names := make([]string, len(s.conns))
	for i, conn := range s.conns {
		names[i] = conn.kind
	}

	return strings.Join(names, " and ")
}

// Kind returns which broker it is.
func (c *Conn) Kind() string { return c.kind }

// Connect waits until the broker answers and has all topics, or ctx ends. It
// logs when it has to wait, and when waiting is over.
func (c *Conn) Connect(ctx context.Context, topics []Topic) error {
	waited := false
	policy := backoff.NewExponentialBackOff()
	policy.MaxInterval = 5 * time.Second

	_, err := backoff.Retry(ctx,
		func() (struct{}, error) { return struct{}{}, c.driver.connect(ctx, topics) },
		backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) {
			if !waited {
				c.logger.Warn("waiting for the broker", slog.Any("error", err))
			}

			waited = true
		}))
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", c.kind, err)
	}

	if waited {
		c.logger.Info("the broker answers")
	}

	return nil
}

// Publisher returns the publisher, after Connect. Publish returns nil only
// when the broker has confirmed the message; the embedded broker confirms when
// the consumer has acknowledged. It may be called by Lanes goroutines at once.
func (c *Conn) Publisher() message.Publisher { return c.driver.publisher() }

// Subscriber returns the subscriber of a consumer, after Connect.
func (c *Conn) Subscriber(consumer string) message.Subscriber { return c.driver.subscriber(consumer) }

// Lanes is how many messages are worth publishing at once.
func (c *Conn) Lanes() int { return c.driver.lanes() }

// Ping reports whether the broker can be reached.
func (c *Conn) Ping(ctx context.Context) error { return c.driver.ping(ctx) }

// Close closes the connection. What is being published fails with an error.
func (c *Conn) Close() error { return c.driver.close() }

// received makes the message that the router gets. Headers from outside never
// pass for reserved ones.
func received(headers event.Headers, nativeID, key, origin, identity string, payload []byte) *message.Message {
	for name, value := range headers {
		if strings.HasPrefix(name, event.ReservedPrefix) {
			delete(headers, name)
			headers["x-"+name] = value
		}
	}

	msg := message.NewMessage(event.IdentifyMessage(headers, nativeID, identity).String(), payload)
	msg.Metadata = message.Metadata(headers)
	msg.Metadata[event.HeaderKey] = key
	msg.Metadata[event.HeaderOrigin] = origin

	return msg
}

// sent returns the headers that leave the process.
func sent(msg *message.Message) event.Headers {
	headers := make(event.Headers, len(msg.Metadata)+1)

	for name, value := range msg.Metadata {
		if !strings.HasPrefix(name, event.ReservedPrefix) {
			headers[name] = value
		}
	}

	headers[event.HeaderWatermillID] = msg.UUID

	return headers
}

func watermillLogger(logger *slog.Logger) watermill.LoggerAdapter {
	// The libraries tell at Error what they then recover from.
	return telemetry.Watermill(logger, slog.LevelWarn)
}
