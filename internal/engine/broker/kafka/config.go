package kafka

import (
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/IBM/sarama"

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
	// Window is the maximum number of messages in hand per topic, with at most 16 MiB of
	// payloads. Defaults to 512.
	Window int `koanf:"window"`
	// Lanes is the number of keys whose messages are published concurrently. Defaults to
	// 256.
	Lanes int `koanf:"lanes"`
	// TLS encrypts connections and verifies the brokers. Defaults to false.
	TLS bool `koanf:"tls"`
	// CAFile holds the certificates that verify the brokers. Defaults to the system's
	// roots. They also verify the token endpoint, together with the system's roots.
	CAFile string `koanf:"ca_file"`
	// CertFile and KeyFile hold the certificate that the service presents to the
	// brokers. They are read for each connection. Empty by default.
	CertFile string `koanf:"cert_file"`
	KeyFile  string `koanf:"key_file"`
	// User is the SASL user name or, with OAUTHBEARER, the client id. Empty by default:
	// no SASL login.
	User string `koanf:"user"`
	// Password is the password of User or, with OAUTHBEARER, the client secret. Empty by
	// default.
	Password postgres.Secret `koanf:"password"`
	// SASLMechanism is how User logs in: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or
	// OAUTHBEARER, with tokens from the client credentials grant. Defaults to
	// SCRAM-SHA-512.
	SASLMechanism string `koanf:"sasl_mechanism"`
	// TokenURL is the endpoint that issues tokens for OAUTHBEARER. Empty by default.
	TokenURL string `koanf:"token_url"`
	// Scopes are the scopes to request tokens with. Empty by default.
	Scopes []string `koanf:"scopes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Brokers: []string{"127.0.0.1:9092"}, Group: "millrace", Partitions: 8, ReplicationFactor: 1, Window: 512, Lanes: 256,
		SASLMechanism: sarama.SASLTypeSCRAMSHA512, Scopes: []string{},
	}
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
		check.That(c.CAFile == "" || c.TLS || c.TokenURL != "", "broker.kafka.ca_file: has no effect unless broker.kafka.tls is true"),
		check.That(c.CertFile == "" || c.TLS, "broker.kafka.cert_file: has no effect unless broker.kafka.tls is true"),
		check.That((c.CertFile == "") == (c.KeyFile == ""), "broker.kafka.cert_file and broker.kafka.key_file: one is missing, expected both or neither"),
		c.validateLogin(),
	)
}

// mechanisms lists the supported SASL mechanisms.
var mechanisms = []string{sarama.SASLTypePlaintext, sarama.SASLTypeSCRAMSHA256, sarama.SASLTypeSCRAMSHA512, sarama.SASLTypeOAuth}

func (c Config) validateLogin() error {
	byToken := c.SASLMechanism == sarama.SASLTypeOAuth
	tokens, err := url.Parse(c.TokenURL)
	isURL := err == nil && (tokens.Scheme == "https" || tokens.Scheme == "http") && tokens.Host != ""

	return errors.Join(
		check.That((c.User == "") == (c.Password == ""), "broker.kafka.user: set it together with broker.kafka.password, or neither"),
		check.Value(slices.Contains(mechanisms, c.SASLMechanism), "broker.kafka.sasl_mechanism", c.SASLMechanism, strings.Join(mechanisms, ", ")),
		check.That(c.User != "" || c.SASLMechanism == DefaultConfig().SASLMechanism, "broker.kafka.sasl_mechanism: has no effect unless broker.kafka.user is set"),
		check.That(!byToken || isURL, "broker.kafka.token_url: not an address, expected the token endpoint, such as https://id.example/oauth2/token"),
		check.That(byToken || c.TokenURL == "", "broker.kafka.token_url: has no effect unless broker.kafka.sasl_mechanism is OAUTHBEARER"),
		check.That(byToken || len(c.Scopes) == 0, "broker.kafka.scopes: has no effect unless broker.kafka.sasl_mechanism is OAUTHBEARER"),
	)
}

// Warn returns an error that lists the secrets that others on the network can read.
// SCRAM does not send the password.
func (c Config) Warn() error {
	var errs []error

	sent := c.User != "" && (c.SASLMechanism == sarama.SASLTypePlaintext || c.SASLMechanism == sarama.SASLTypeOAuth)

	for _, address := range c.Brokers {
		host, _, err := net.SplitHostPort(address)
		if err == nil && !check.Loopback(host) {
			errs = append(errs, check.Encrypted("broker.kafka.tls", c.TLS, sent, host, "true"))

			break
		}
	}

	if tokens, err := url.Parse(c.TokenURL); err == nil {
		errs = append(errs, check.Encrypted("broker.kafka.token_url", tokens.Scheme == "https", c.TokenURL != "", tokens.Hostname(), "https://"))
	}

	return errors.Join(errs...)
}
