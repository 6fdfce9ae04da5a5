package kafka

import (
	"errors"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config configures the connection to Kafka.
type Config struct {
	// Brokers are host:port pairs. Defaults to 127.0.0.1:9092.
	Brokers []string `koanf:"brokers"`
	// Group is the prefix of consumer group names; the topic follows, as in
	// "millrace.orders.created". Defaults to "millrace".
	Group string `koanf:"group"`
	// Prefix is prepended to all topic names, so that several environments can share
	// a cluster. Empty by default.
	Prefix string `koanf:"prefix"`
	// Partitions is the partition count of topics that the service creates. It bounds
	// how many replicas share a topic. Defaults to 8.
	Partitions int32 `koanf:"partitions"`
	// ReplicationFactor applies to topics that the service creates. Defaults to 1.
	ReplicationFactor int16 `koanf:"replication_factor"`
	// Window is how many messages of a topic are in hand at once, with at most 16 MiB of
	// payloads. Defaults to 512.
	Window int `koanf:"window"`
	// Lanes is how many messages are published at once. Defaults to 256.
	Lanes int `koanf:"lanes"`
	// TLS encrypts connections and verifies the brokers. Defaults to false.
	TLS bool `koanf:"tls"`
	// CAFile holds the certificates that verify the brokers. Defaults to the system's
	// roots.
	CAFile string `koanf:"ca_file"`
	// User is the SASL SCRAM-SHA-512 user name. Empty by default: no login.
	User string `koanf:"user"`
	// Password is the password of User. Empty by default.
	Password postgres.Secret `koanf:"password"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Brokers: []string{"127.0.0.1:9092"}, Group: "millrace", Partitions: 8, ReplicationFactor: 1, Window: 512, Lanes: 256}
}

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	return errors.Join(
		check.Positive("broker.kafka.partitions", c.Partitions),
		check.Positive("broker.kafka.replication_factor", c.ReplicationFactor),
		check.Positive("broker.kafka.window", c.Window),
		check.Positive("broker.kafka.lanes", c.Lanes),
		check.That(len(c.Brokers) > 0, "broker.kafka.brokers: must not be empty, expected host:port, separated by commas"),
		check.That(c.Group != "", "broker.kafka.group: must not be empty"),
		check.That((c.User == "") == (c.Password == ""), "broker.kafka.user: set it together with broker.kafka.password, or neither"),
		check.That(c.CAFile == "" || c.TLS, "broker.kafka.ca_file: has no effect unless broker.kafka.tls is true"),
	)
}
