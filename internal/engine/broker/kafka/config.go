package kafka

import (
	"errors"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config says how to reach Kafka.
type Config struct {
	// Brokers are host:port pairs. Defaults to 127.0.0.1:9092.
	Brokers []string `koanf:"brokers"`
	// Group is the prefix of consumer groups; the topic follows, as in
	// "millrace.orders.created". Defaults to "millrace".
	Group string `koanf:"group"`
	// Prefix begins the names of all topics on this cluster, so that several
	// environments can share it. Empty by default.
	Prefix string `koanf:"prefix"`
	// Partitions of the topics that the service creates. A partition has one
	// message in hand, so this is the concurrency. Defaults to 64.
	Partitions int32 `koanf:"partitions"`
	// ReplicationFactor of the topics that the service creates. Defaults to 1.
	ReplicationFactor int16 `koanf:"replication_factor"`
	// Lanes is how many messages are published at once. Defaults to 256.
	Lanes int `koanf:"lanes"`
	// TLS encrypts connections and verifies the brokers. Defaults to false.
	TLS bool `koanf:"tls"`
	// CAFile has the certificates that verify the brokers. Defaults to the
	// system's roots.
	CAFile string `koanf:"ca_file"`
	// User logs in by SASL SCRAM-SHA-512. Empty by default: no login.
	User string `koanf:"user"`
	// Password belongs to User. Empty by default.
	Password postgres.Secret `koanf:"password"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Brokers: []string{"127.0.0.1:9092"}, Group: "millrace", Partitions: 64, ReplicationFactor: 1, Lanes: 256}
}

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	return errors.Join(
		check.Positive("broker.kafka.partitions", c.Partitions),
		check.Positive("broker.kafka.replication_factor", c.ReplicationFactor),
		check.Positive("broker.kafka.lanes", c.Lanes),
		check.That(len(c.Brokers) > 0, "broker.kafka.brokers: must not be empty, expected host:port, separated by commas"),
		check.That(c.Group != "", "broker.kafka.group: must not be empty"),
		check.That((c.User == "") == (c.Password == ""), "broker.kafka.user: set it together with broker.kafka.password, or neither"),
		check.That(c.CAFile == "" || c.TLS, "broker.kafka.ca_file: has no effect unless broker.kafka.tls is true"),
	)
}
