package broker

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Kinds of brokers.
const (
	Embedded = "embedded"
	Kafka    = "kafka"
	RabbitMQ = "rabbitmq"
)

// Config selects a broker and says how to reach it. Only the sections of the
// kinds in use count.
type Config struct {
	Kind string `koanf:"kind"`
	// Bind puts topics on brokers of other kinds, each as "topic=kind".
	Bind     []string       `koanf:"bind"`
	Embedded EmbeddedConfig `koanf:"embedded"`
	Kafka    KafkaConfig    `koanf:"kafka"`
	RabbitMQ RabbitMQConfig `koanf:"rabbitmq"`
}

// EmbeddedConfig tunes the broker that needs Postgres alone.
type EmbeddedConfig struct {
	// Lanes is how many messages are in hand at once.
	Lanes int `koanf:"lanes"`
}

// KafkaConfig says how to reach Kafka.
type KafkaConfig struct {
	Brokers []string `koanf:"brokers"`
	// Group is the prefix of the consumer groups: each consumer has its own.
	Group string `koanf:"group"`
	// Prefix begins the names of all topics on this cluster, so that several
	// environments can share it.
	Prefix string `koanf:"prefix"`
	// Partitions of the topics that the service creates. More than one message
	// of a partition is never in hand, so this is the concurrency.
	Partitions        int32 `koanf:"partitions"`
	ReplicationFactor int16 `koanf:"replication_factor"`
	// Lanes is how many messages are published at once.
	Lanes int `koanf:"lanes"`
	// TLS verifies the brokers with the system's roots, or with CAFile.
	TLS    bool   `koanf:"tls"`
	CAFile string `koanf:"ca_file"`
	// User and Password log in by SASL SCRAM-SHA-512, if set.
	User     string          `koanf:"user"`
	Password postgres.Secret `koanf:"password"`
}

// RabbitMQConfig says how to reach RabbitMQ.
type RabbitMQConfig struct {
	// URL begins with amqp:// or, with TLS, amqps://.
	URL postgres.Secret `koanf:"url"`
	// Exchange is where the service publishes.
	Exchange string `koanf:"exchange"`
	// Consumers is how many messages of a queue are in hand at once.
	Consumers int `koanf:"consumers"`
	// Lanes is how many messages are published at once.
	Lanes int `koanf:"lanes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Kind: Embedded, Bind: []string{},
		Embedded: EmbeddedConfig{Lanes: 256},
		Kafka: KafkaConfig{
			Brokers: []string{"127.0.0.1:9092"}, Group: "millrace", Partitions: 64, ReplicationFactor: 1, Lanes: 256,
		},
		RabbitMQ: RabbitMQConfig{
			URL: "amqp://guest:guest@127.0.0.1:5672/", Exchange: "millrace", Consumers: 128, Lanes: 128,
		},
	}
}

// Validate reports every mistake in the sections that count, naming the key.
func (c Config) Validate() error {
	bound, err := c.bound()
	errs := []error{c.validate(c.Kind, "broker.kind"), err}

	for _, kind := range slices.Compact(slices.Sorted(maps.Values(bound))) {
		if kind != c.Kind {
			errs = append(errs, c.validate(kind, "broker.bind"))
		}
	}

	return errors.Join(errs...)
}

func (c Config) validate(kind, key string) error {
	switch kind {
	case Embedded:
		return positive("broker.embedded.lanes", c.Embedded.Lanes)
	case Kafka:
		return c.Kafka.validate()
	case RabbitMQ:
		return c.RabbitMQ.validate()
	default:
		return fmt.Errorf("%s: is %q, expected %s, %s or %s", key, kind, Embedded, Kafka, RabbitMQ)
	}
}

// bound returns the kind of each topic that is bound.
func (c Config) bound() (map[string]string, error) {
	var errs []error

	kinds := make(map[string]string, len(c.Bind))

	for _, text := range c.Bind {
		topic, kind, found := strings.Cut(text, "=")
		if !found || topic == "" {
			errs = append(errs, fmt.Errorf("broker.bind: has %q, expected topic=kind such as notifications=rabbitmq", text))

			continue
		}

		if _, twice := kinds[topic]; twice {
			errs = append(errs, fmt.Errorf("broker.bind: has topic %s twice, expected each once", topic))
		}

		kinds[topic] = kind
	}

	return kinds, errors.Join(errs...)
}

func (c KafkaConfig) validate() error {
	errs := []error{
		positive("broker.kafka.partitions", int(c.Partitions)),
		positive("broker.kafka.replication_factor", int(c.ReplicationFactor)),
		positive("broker.kafka.lanes", c.Lanes),
	}

	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("broker.kafka.brokers: must not be empty, expected host:port, separated by commas"))
	}

	if c.Group == "" {
		errs = append(errs, errors.New("broker.kafka.group: must not be empty"))
	}

	if (c.User == "") != (c.Password == "") {
		errs = append(errs, errors.New("broker.kafka.user: stands without broker.kafka.password or the other way round, expected both or none"))
	}

	if c.CAFile != "" && !c.TLS {
		errs = append(errs, errors.New("broker.kafka.ca_file: has no effect without broker.kafka.tls: set it to true"))
	}

	return errors.Join(errs...)
}

func (c RabbitMQConfig) validate() error {
	errs := []error{
		positive("broker.rabbitmq.consumers", c.Consumers),
		positive("broker.rabbitmq.lanes", c.Lanes),
	}

	// The parser's error is not repeated: it would quote the password.
	if u, err := url.Parse(string(c.URL)); err != nil || (u.Scheme != "amqp" && u.Scheme != "amqps") || u.Host == "" {
		errs = append(errs, errors.New("broker.rabbitmq.url: is not an AMQP address, expected amqp://user:password@host:5672/"))
	}

	if c.Exchange == "" {
		errs = append(errs, errors.New("broker.rabbitmq.exchange: must not be empty"))
	}

	return errors.Join(errs...)
}

func positive(key string, n int) error {
	if n < 1 {
		return fmt.Errorf("%s: is %d, expected at least 1", key, n)
	}

	return nil
}
