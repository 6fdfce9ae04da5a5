package config_test

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

func TestSecretsThatTheNetworkCanReadAreNamed(t *testing.T) {
	const database, rabbit, webhook = "postgres.url: sends a secret", "broker.rabbitmq.url: sends a secret", "notification.webhook.url: sends a secret"

	for _, c := range []struct{ url, want string }{
		{"postgres://user:hunter2@db.example/x", database}, // prefer, by default
		{"postgres://user:hunter2@db.example/x?sslmode=prefer", database},
		{"postgres://user:hunter2@db.example/x?sslmode=allow", database},
		{"postgres://user:hunter2@db.example/x?sslmode=disable", database},
		{"host=db.example user=user password=hunter2", database},
		{"postgres://user:hunter2@127.0.0.1,db.example/x", database},
		{"postgres://user:hunter2@10.0.0.7/x", database},
		{"postgres://user:hunter2@db.example/x?sslmode=require", ""},
		{"postgres://user:hunter2@db.example/x?sslmode=verify-full", ""},
		{"postgres://user@db.example/x", ""},
		{"postgres://user:hunter2@localhost/x", ""},
		{"postgres://user:hunter2@127.0.0.1:5433/x", ""},
		{"postgres://user:hunter2@[::1]/x", ""},
		{"postgres://user:hunter2@/x?host=/var/run/postgresql", ""},
		{"amqp://user:hunter2@mq.example:5672/", rabbit},
		{"amqp://user:hunter2@10.0.0.7/vhost", rabbit},
		{"amqp://mq.example:5672/", ""},
		{"amqps://user:hunter2@mq.example:5671/", ""},
		{"amqp://user:hunter2@127.0.0.1:5672/", ""},
		{"amqp://user:hunter2@localhost/", ""},
		{"amqp://user:hunter2@[::1]:5672/", ""},
		{"http://user:hunter2@hooks.example/x", webhook},
		{"http://hooks.example/x?token=hunter2", webhook},
		{"http://hooks.example/x", ""}, // the signature does not reveal the secret
		{"https://hooks.example/x?token=hunter2", ""},
		{"http://127.0.0.1:8080/x?token=hunter2", ""},
	} {
		cfg := config.Default()
		cfg.Postgres.URL = "postgres://user:hunter2@127.0.0.1/x"

		switch scheme, _, _ := strings.Cut(c.url, "://"); {
		case strings.HasPrefix(scheme, "amqp"):
			cfg.Broker.Kind, cfg.Broker.RabbitMQ.URL = broker.RabbitMQ, postgres.Secret(c.url)
		case strings.HasPrefix(scheme, "http"):
			cfg.Notification.Webhook.URL = scrub.URL(c.url)
		default:
			cfg.Postgres.URL = postgres.Secret(c.url)
		}

		err := cfg.Warn()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
			t.Errorf("%s: got %v, expected %q", c.url, err, c.want)
		}

		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the warning reveals the secret: %v", c.url, err)
		}
	}
}

func TestEveryHostOfRabbitMQGetsThePassword(t *testing.T) {
	cfg := config.Default()
	cfg.Postgres.URL, cfg.Broker.Kind = "postgres://user:hunter2@127.0.0.1/x", broker.RabbitMQ
	cfg.Broker.RabbitMQ.URL, cfg.Broker.RabbitMQ.Hosts = "amqp://user:hunter2@127.0.0.1/", []string{"[::1]:5672", "mq.example:5672"}

	if err := cfg.Warn(); err == nil || !strings.Contains(err.Error(), "to mq.example unencrypted, expected amqps://") {
		t.Errorf("got %v", err)
	}

	cfg.Broker.RabbitMQ.Hosts = cfg.Broker.RabbitMQ.Hosts[:1]

	if err := cfg.Warn(); err != nil {
		t.Errorf("on loopback: got %v", err)
	}
}

func TestLoginsToKafkaThatTheNetworkCanReadAreNamed(t *testing.T) {
	const connection, endpoint = "broker.kafka.tls: sends a secret", "broker.kafka.token_url: sends a secret"

	for _, c := range []struct {
		mechanism, broker, tokens string
		tls                       bool
		want                      string
	}{
		{"SCRAM-SHA-512", "kafka.example:9092", "", false, ""}, // it does not send the password
		{"PLAIN", "kafka.example:9092", "", false, connection},
		{"PLAIN", "kafka.example:9092", "", true, ""},
		{"PLAIN", "127.0.0.1:9092", "", false, ""},
		{"OAUTHBEARER", "kafka.example:9092", "https://id.example/token", false, connection},
		{"OAUTHBEARER", "kafka.example:9092", "http://id.example/token", true, endpoint},
		{"OAUTHBEARER", "kafka.example:9092", "http://127.0.0.1:8080/token", true, ""},
	} {
		cfg := config.Default()
		cfg.Postgres.URL, cfg.Broker.Kind = "postgres://localhost/x", broker.Kafka
		cfg.Broker.Kafka.Brokers, cfg.Broker.Kafka.TLS = []string{"127.0.0.1:9092", c.broker}, c.tls
		cfg.Broker.Kafka.User, cfg.Broker.Kafka.Password = "shop", "hunter2"
		cfg.Broker.Kafka.SASLMechanism, cfg.Broker.Kafka.TokenURL = c.mechanism, c.tokens

		if err := cfg.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}

		err := cfg.Warn()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
}

// The password in such a URL is not sent anywhere, but a URL that is set is meant to
// be used.
func TestABrokerThatNoTopicUsesIsNamed(t *testing.T) {
	cfg := config.Default()
	cfg.Broker.RabbitMQ.URL = "amqp://user:hunter2@mq.example/"

	if err := cfg.Warn(); err == nil || !strings.HasPrefix(err.Error(), "broker.rabbitmq: is set, but no topic uses it") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

func TestALoginThatTheInternetCanReadIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*config.Config)
		want   string
	}{
		"mail": {func(c *config.Config) {
			c.Notification.Email.Host, c.Notification.Email.TLS = "mail.example", "none"
			c.Notification.Email.User, c.Notification.Email.Password = "shop", "hunter2"
		}, "notification.email.user: sends a secret to mail.example unencrypted, expected notification.email.tls starttls or tls"},
		"mail on this machine": {func(c *config.Config) {
			c.Notification.Email.Host, c.Notification.Email.TLS = "localhost", "none"
			c.Notification.Email.User, c.Notification.Email.Password = "shop", "hunter2"
		}, ""},
		"stripe": {func(c *config.Config) {
			c.Payment.Gateway, c.Payment.Stripe.SecretKey, c.Payment.Stripe.URL = "stripe", "sk_test_1", "http://stripe.example"
		}, "payment.stripe.url: sends a secret to stripe.example unencrypted, expected https://host"},
		"stripe on this machine": {func(c *config.Config) {
			c.Payment.Gateway, c.Payment.Stripe.SecretKey, c.Payment.Stripe.URL = "stripe", "sk_test_1", "http://127.0.0.1:12111"
		}, ""},
	} {
		cfg := config.Default()
		cfg.Postgres.URL = "postgres://localhost/x"
		c.change(&cfg)

		if err := cfg.Validate(); c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: got %v, expected %q", name, err, c.want)
		}
	}
}
