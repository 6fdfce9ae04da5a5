package rabbitmq

import (
	"errors"
	"net/url"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config configures the connection to RabbitMQ.
type Config struct {
	// URL starts with amqp://, or amqps:// for TLS. Defaults to
	// amqp://guest:guest@127.0.0.1:5672/.
	URL postgres.Secret `koanf:"url"`
	// CAFile holds the certificates that verify the server of an amqps:// URL.
	// Defaults to the system's roots.
	CAFile string `koanf:"ca_file"`
	// Exchange is the exchange that the service publishes to. Defaults to "millrace".
	Exchange string `koanf:"exchange"`
	// Consumers is how many messages of a queue are in flight at once. Defaults to
	// 128.
	Consumers int `koanf:"consumers"`
	// Lanes is how many messages are published at once. Defaults to 128.
	Lanes int `koanf:"lanes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{URL: "amqp://guest:guest@127.0.0.1:5672/", Exchange: "millrace", Consumers: 128, Lanes: 128}
}

// Warn returns an error if the password crosses the network unencrypted.
func (c Config) Warn() error {
	u, err := url.Parse(string(c.URL))
	if err != nil {
		return nil //nolint:nilerr // Validate reports it
	}

	_, secret := u.User.Password()

	return check.Encrypted("broker.rabbitmq.url", u.Scheme == "amqps", secret, u.Hostname(), "amqps://")
}

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	// Do not include the parser's error: it quotes the password.
	u, err := url.Parse(string(c.URL))
	valid := err == nil && (u.Scheme == "amqp" || u.Scheme == "amqps") && u.Host != ""

	return errors.Join(
		check.Positive("broker.rabbitmq.consumers", c.Consumers),
		check.Positive("broker.rabbitmq.lanes", c.Lanes),
		check.That(valid, "broker.rabbitmq.url: not an AMQP address, expected amqp://host:5672/ with user:password@ before the host"),
		check.That(c.CAFile == "" || !valid || u.Scheme == "amqps", "broker.rabbitmq.ca_file: has no effect unless broker.rabbitmq.url starts with amqps://"),
		check.That(c.Exchange != "", "broker.rabbitmq.exchange: must not be empty"),
	)
}
