package broker

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/millracehq/millrace/internal/engine/broker/embedded"
	"github.com/millracehq/millrace/internal/engine/broker/kafka"
	"github.com/millracehq/millrace/internal/engine/broker/rabbitmq"
	"github.com/millracehq/millrace/internal/engine/check"
)

// Kinds of brokers.
const (
	Embedded = "embedded"
	Kafka    = "kafka"
	RabbitMQ = "rabbitmq"
)

// Config selects the brokers and configures their connections. Sections of unused
// brokers are ignored.
type Config struct {
	// Kind is the broker for all topics without an entry in Bind. Defaults to "embedded".
	Kind string `koanf:"kind"`
	// Bind assigns other brokers or other names to topics. Empty by default.
	Bind     []Binding       `koanf:"bind"`
	Embedded embedded.Config `koanf:"embedded"`
	Kafka    kafka.Config    `koanf:"kafka"`
	RabbitMQ rabbitmq.Config `koanf:"rabbitmq"`
}

// Binding says where a topic is.
type Binding struct {
	Topic string `koanf:"topic"`
	// Broker is a kind: embedded, kafka or rabbitmq. Defaults to broker.kind.
	Broker string `koanf:"broker"`
	// Name is the topic's name on the broker. Defaults to Topic.
	Name string `koanf:"name"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Kind: Embedded, Bind: []Binding{},
		Embedded: embedded.DefaultConfig(), Kafka: kafka.DefaultConfig(), RabbitMQ: rabbitmq.DefaultConfig(),
	}
}

// Validate reports all mistakes in the sections in use, naming the keys.
func (c Config) Validate() error {
	var (
		errs   []error
		topics []string
	)

	for _, b := range c.Bind {
		if b.Topic == "" || b.Broker == "" && b.Name == "" {
			errs = append(errs, fmt.Errorf("broker.bind: {topic: %q, broker: %q, name: %q} is incomplete, "+
				"expected for example {topic: notifications, broker: rabbitmq} or {topic: orders.created, name: shop.orders.v1}", b.Topic, b.Broker, b.Name))
		}

		if b.Name != "" && cmp.Or(b.Broker, c.Kind) == Embedded {
			errs = append(errs, fmt.Errorf("broker.bind: topic %s is named %s, but the embedded broker cannot rename topics, expected broker kafka or rabbitmq", b.Topic, b.Name))
		}

		if slices.Contains(topics, b.Topic) {
			errs = append(errs, fmt.Errorf("broker.bind: topic %s is bound twice", b.Topic))
		}

		topics = append(topics, b.Topic)
	}

	for _, kind := range c.kinds() {
		errs = append(errs, c.validateKind(kind))
	}

	return errors.Join(errs...)
}

// Warn returns an error that lists the secrets that others on the network can read, and
// the configured brokers that no topic uses.
func (c Config) Warn() error {
	defaults := DefaultConfig()

	unused := func(kind string, changed bool) error {
		return check.That(!changed || slices.Contains(c.kinds(), kind), fmt.Sprintf(
			"broker.%s: is set, but no topic uses it, because broker.kind is %s; set broker.kind, bind topics with broker.bind, or remove the section", kind, c.Kind))
	}

	errs := []error{unused(Kafka, !reflect.DeepEqual(c.Kafka, defaults.Kafka)), unused(RabbitMQ, !reflect.DeepEqual(c.RabbitMQ, defaults.RabbitMQ))}

	if slices.Contains(c.kinds(), Kafka) {
		errs = append(errs, c.Kafka.Warn())
	}

	if slices.Contains(c.kinds(), RabbitMQ) {
		errs = append(errs, c.RabbitMQ.Warn())
	}

	return errors.Join(errs...)
}

// names returns a broker's names for topics, where they differ from ours.
func (c Config) names(kind string) names {
	names := names{}

	for _, b := range c.Bind {
		if b.Name != "" && cmp.Or(b.Broker, c.Kind) == kind {
			names[b.Topic] = b.Name
		}
	}

	return names
}

// kinds returns the brokers in use, default broker first.
func (c Config) kinds() []string {
	kinds := []string{c.Kind}

	for _, b := range c.Bind {
		if b.Broker != "" && !slices.Contains(kinds, b.Broker) {
			kinds = append(kinds, b.Broker)
		}
	}

	return kinds
}

func (c Config) validateKind(kind string) error {
	switch kind {
	case Embedded:
		return c.Embedded.Validate()
	case Kafka:
		return c.Kafka.Validate()
	case RabbitMQ:
		return c.RabbitMQ.Validate()
	}

	key := "broker.kind"
	if kind != c.Kind {
		key = "broker.bind"
	}

	return fmt.Errorf("%s: is %q, expected %s, %s or %s", key, kind, Embedded, Kafka, RabbitMQ)
}
