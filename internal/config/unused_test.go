package config_test

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
)

func TestSettingsThatDoNothingAreNamed(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		change func(*config.Config)
		want   string
	}{
		"kafka, but the broker is embedded": {
			func(c *config.Config) { c.Broker.Kafka.Brokers = []string{"kafka:9092"} }, "broker.kafka: is set, but no topic uses it",
		},
		"rabbitmq, but the broker is kafka": {
			func(c *config.Config) { c.Broker.Kind, c.Broker.RabbitMQ.Exchange = "kafka", "shop" }, "broker.rabbitmq: is set, but no topic uses it",
		},
		"kafka in use": {
			func(c *config.Config) { c.Broker.Kind, c.Broker.Kafka.Brokers = "kafka", []string{"kafka:9092"} }, "",
		},
		"a key of Stripe, but simulated payments": {
			func(c *config.Config) { c.Payment.Stripe.SecretKey = "sk_test_x" }, "payment.gateway: is simulated, although payment.stripe.secret_key is set",
		},
		"Stripe without webhooks": {
			func(c *config.Config) { c.Payment.Gateway, c.Payment.Stripe.SecretKey = "stripe", "sk_test_x" }, "payment.stripe.webhook_secret: is not set",
		},
		"Stripe with webhooks": {
			func(c *config.Config) {
				c.Payment.Gateway, c.Payment.Stripe.SecretKey, c.Payment.Stripe.WebhookSecret = "stripe", "sk_test_x", "whsec_x"
			}, "",
		},
		"a secret of webhooks, but no receiver": {
			func(c *config.Config) { c.Notification.Webhook.Secret = "whsec_x" }, "notification.webhook.secret: is set, but notification.webhook.url is not",
		},
		"a login to no mail server": {
			func(c *config.Config) { c.Notification.Email.User = "shop" }, "notification.email.user: is set, but notification.email.host is not",
		},
		"the defaults": {func(*config.Config) {}, ""},
	} {
		cfg := config.Default()
		c.change(&cfg)

		var got string
		if err := cfg.Warn(); err != nil {
			got = err.Error()
		}

		if !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") || strings.Contains(got, "\n") {
			t.Errorf("%s: got %q, expected %q", name, got, c.want)
		}

		// The fact that e-mails are only logged appears wherever the state is shown.
		if warnings := strings.Join(config.Warnings(cfg), "\n"); !strings.HasPrefix(warnings, got) || !strings.Contains(warnings, "notification.email.host: is not set, so no e-mail is sent") {
			t.Errorf("%s: status shows %q", name, warnings)
		}
	}
}
