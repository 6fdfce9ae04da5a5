// Package broker connects the service to its message brokers and assigns topics to
// them. The brokers themselves are in packages embedded, kafka and rabbitmq, the only
// importers of client libraries.
package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/broker/embedded"
	"github.com/millracehq/millrace/internal/engine/broker/kafka"
	"github.com/millracehq/millrace/internal/engine/broker/rabbitmq"
)

// Topic is a topic to declare on a broker.
type Topic = driver.Topic

// ErrClosed reports that the connection closed before the broker confirmed the
// message. The broker may or may not have stored it.
var ErrClosed = driver.ErrClosed

// Conn is a connection to a broker. It embeds the methods of its driver.
type Conn struct {
	driver.Driver

	kind   string
	names  names
	logger *slog.Logger
	health health
}

// New returns an unconnected Conn to the configured broker, which carries all topics.
func New(cfg Config, logger *slog.Logger) (*Conn, error) {
	return newConn(cfg, cfg.Kind, logger)
}

func newConn(cfg Config, kind string, logger *slog.Logger) (*Conn, error) {
	logger = logger.With(slog.String("component", "broker"), slog.String("broker", kind))
	conn := &Conn{kind: kind, names: cfg.names(kind), logger: logger}

	switch kind {
	case Embedded:
		conn.Driver = embedded.New(cfg.Embedded)
	case Kafka:
		d := kafka.New(cfg.Kafka, logger)
		conn.Driver = named{Driver: d, Tailer: d, names: conn.names}
	case RabbitMQ:
		d := rabbitmq.New(cfg.RabbitMQ, logger)
		conn.Driver = named{Driver: d, Tailer: d, names: conn.names}
	default:
		return nil, cfg.validateKind(kind)
	}

	return conn, nil
}

// Kind returns the kind of broker.
func (c *Conn) Kind() string { return c.kind }

// Connect waits until the broker answers and has all topics, or ctx ends. It logs when it
// starts and stops waiting and, at increasing intervals, why it is waiting.
func (c *Conn) Connect(ctx context.Context, topics []Topic) error {
	c.health.began()

	err := backoff.Retry(ctx, c.logger, c.kind, func() error {
		err := c.Driver.Connect(ctx, topics)
		c.health.heard(err)

		if refused, ok := errors.AsType[*driver.RefusedError](err); ok {
			return fmt.Errorf("%w (%s)", err, refused.Remedy) // for the log
		}

		return err
	})
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", c.kind, err)
	}

	return nil
}

// Set is the set of brokers of a service. The default broker carries every topic that
// is not bound to another.
type Set struct {
	cfg   Config
	conns []*Conn // default broker first
	bound map[string]string
}

// NewSet returns unconnected Conns to all configured brokers.
func NewSet(cfg Config, logger *slog.Logger) (*Set, error) {
	set := &Set{cfg: cfg, bound: make(map[string]string, len(cfg.Bind))}
	for _, b := range cfg.Bind {
		set.bound[b.Topic] = cmp.Or(b.Broker, cfg.Kind)
	}

	for _, kind := range cfg.kinds() {
		conn, err := newConn(cfg, kind, logger)
		if err != nil {
			return nil, err
		}

		set.conns = append(set.conns, conn)
	}

	return set, nil
}

// Conns returns the connections, default broker first.
func (s *Set) Conns() []*Conn { return s.conns }

// Has reports whether conn carries a topic.
func (s *Set) Has(conn *Conn, topic string) bool {
	kind, bound := s.bound[topic]

	return kind == conn.kind || !bound && conn == s.conns[0]
}

// Of returns the connection that carries a topic.
func (s *Set) Of(topic string) *Conn {
	for _, conn := range s.conns {
		if s.Has(conn, topic) {
			return conn
		}
	}

	return nil // not reached: the default broker carries every topic that is not bound
}

// Bound returns the topics bound to the broker of conn.
func (s *Set) Bound(conn *Conn) []string {
	var topics []string

	for topic, kind := range s.bound {
		if kind == conn.kind {
			topics = append(topics, topic)
		}
	}

	return topics
}

// Kinds returns the broker names as readable text.
func (s *Set) Kinds() string {
	names := make([]string, len(s.conns))
	for i, conn := range s.conns {
		names[i] = conn.kind
	}

	return strings.Join(names, " and ")
}
