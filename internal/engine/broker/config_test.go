package broker_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/broker/kafka"
)

func TestBindingsAreValidated(t *testing.T) {
	t.Parallel()

	for want, bind := range map[string][]broker.Binding{
		`broker.bind: topic a is bound twice`:                        {{Topic: "a", Broker: "kafka"}, {Topic: "a", Broker: "rabbitmq"}},
		`broker.bind: is "pigeon", expected embedded, kafka or`:      {{Topic: "a", Broker: "pigeon"}},
		`broker.bind: {topic: "", broker: "kafka", name: ""} is inc`: {{Broker: "kafka"}},
		`broker.bind: {topic: "a", broker: "", name: ""} is incompl`: {{Topic: "a"}},
		`broker.bind: topic a is named x, but the embedded broker c`: {{Topic: "a", Name: "x"}},
		`broker.kafka.group: must not be empty`:                      {{Topic: "a", Broker: "kafka"}},
		`broker.rabbitmq.ca_file: has no effect unless broker.rabb`:  {{Topic: "a", Broker: "rabbitmq"}},
	} {
		cfg := broker.DefaultConfig()
		cfg.Bind, cfg.Kafka.Group, cfg.RabbitMQ.CAFile = bind, "", "ca.pem"

		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, expected %q", err, want)
		}
	}
}

func TestLoginsToKafkaAreValidated(t *testing.T) {
	t.Parallel()

	for want, change := range map[string]func(*kafka.Config){
		`broker.kafka.user: set it together with broker.kafka.password`:                              func(c *kafka.Config) { c.User = "shop" },
		`broker.kafka.sasl_mechanism: is "GSSAPI", expected PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OA`: func(c *kafka.Config) { c.SASLMechanism = "GSSAPI" },
		`broker.kafka.sasl_mechanism: has no effect unless broker.kafka.user is set`:                 func(c *kafka.Config) { c.SASLMechanism = "PLAIN" },
		`broker.kafka.token_url: not an address, expected the token endpoint`:                        func(c *kafka.Config) { c.SASLMechanism, c.TokenURL = "OAUTHBEARER", "id.example/token" },
		`broker.kafka.token_url: has no effect unless broker.kafka.sasl_mechanism is OAUTHBEARER`:    func(c *kafka.Config) { c.TokenURL = "https://id.example/token" },
		`broker.kafka.scopes: has no effect unless broker.kafka.sasl_mechanism is OAUTHBEARER`:       func(c *kafka.Config) { c.Scopes = []string{"kafka"} },
		`broker.kafka.ca_file: has no effect unless broker.kafka.tls is true`:                        func(c *kafka.Config) { c.CAFile = "ca.pem" },
		`broker.kafka.cert_file: has no effect unless broker.kafka.tls is true`:                      func(c *kafka.Config) { c.CertFile, c.KeyFile = "cert.pem", "key.pem" },
		`broker.kafka.cert_file and broker.kafka.key_file: one is missing`:                           func(c *kafka.Config) { c.TLS, c.CertFile = true, "cert.pem" },
	} {
		cfg := kafka.DefaultConfig()
		change(&cfg)

		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, expected %q", err, want)
		}
	}
}

func TestEachTopicIsOnOneBroker(t *testing.T) {
	t.Parallel()

	cfg := broker.DefaultConfig()
	cfg.Bind = []broker.Binding{{Topic: "a", Broker: broker.Kafka}, {Topic: "b", Broker: broker.Kafka}}

	set, err := broker.NewSet(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}

	embedded, kafka := set.Conns()[0], set.Conns()[1]
	if len(set.Conns()) != 2 || set.Kinds() != "embedded and kafka" ||
		!set.Has(kafka, "a") || set.Has(embedded, "a") || set.Has(kafka, "c") || !set.Has(embedded, "c") || len(set.Bound(kafka)) != 2 {
		t.Errorf("got %+v", set)
	}
}
