package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Tests that set the environment cannot run in parallel.

func TestDefaultYAMLEqualsTheDefaults(t *testing.T) {
	t.Setenv("DATABASE_URL", "")

	text, err := os.ReadFile("../../configs/default.yaml")
	if err != nil {
		t.Fatal(err)
	}

	cfg, err := config.Load("../../configs/default.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}

	if diff := cmp.Diff(config.Default(), cfg); diff != "" {
		t.Errorf("configs/default.yaml differs from the defaults: %s", diff)
	}

	for key := range config.Flatten(config.Default()) {
		if last := key[strings.LastIndex(key, ".")+1:]; !strings.Contains(string(text), last+":") {
			t.Errorf("configs/default.yaml lacks %s", key)
		}
	}
}

func TestTheOtherFilesAreValid(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://localhost/x")

	for name, kind := range map[string]string{"kafka": "kafka", "rabbitmq": "rabbitmq", "multi": "embedded"} {
		cfg, err := config.Load("../../configs/"+name+".yaml", nil)
		if err != nil {
			t.Fatal(err)
		}

		if err := cfg.Validate(); err != nil || cfg.Broker.Kind != kind {
			t.Errorf("%s.yaml: %v, broker %s", name, err, cfg.Broker.Kind)
		}
	}
}

func TestLaterSourcesOverride(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("outbox: {batch_size: 7, max_in_flight: 70}\nlog: {level: warn}\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	t.Setenv("DATABASE_URL", "postgres://somewhere/db")
	t.Setenv("MILLRACE_OUTBOX__BATCH_SIZE", "8")
	t.Setenv("MILLRACE_BROKER__KAFKA__BROKERS", "a:1,b:2")
	t.Setenv("MILLRACE_PAYMENT__SIMULATED__RULES", `[{"order": "slow-*", "action": "timeout", "times": 2}, {"order": "x", "action": "decline"}]`)
	t.Setenv("MILLRACE_TEST_ANYTHING", "is not for the service")

	cfg, err := config.Load(file, map[string]any{"log.level": "debug"})
	if err != nil {
		t.Fatal(err)
	}

	if cfg.Outbox.BatchSize != 8 || cfg.Outbox.MaxInFlight != 70 || cfg.Log.Level != "debug" ||
		cfg.Postgres.URL != "postgres://somewhere/db" || len(cfg.Broker.Kafka.Brokers) != 2 {
		t.Errorf("got %+v", cfg)
	}

	rules := []payment.Rule{{Order: "slow-*", Action: "timeout", Times: 2}, {Order: "x", Action: "decline"}}
	if diff := cmp.Diff(rules, cfg.Payment.Simulated.Rules); diff != "" {
		t.Errorf("rules from the environment: %s", diff)
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	t.Setenv("DATABASE_URL", "")

	cfg, err := config.Load("", map[string]any{
		"broker.kind": "carrier pigeon", "outbox.batch_size": 0, "http.addr": "0.0.0.0:80", "log.level": "loud", "consumer.max_batch": -1,
	})
	if err != nil {
		t.Fatal(err)
	}

	err = cfg.Validate()
	for _, key := range []string{"postgres.url", "broker.kind", "outbox.batch_size", "http.addr", "log.level", "consumer.max_batch"} {
		if err == nil || !strings.Contains(err.Error(), key+": ") {
			t.Errorf("%s is not reported: %v", key, err)
		}
	}
}

func TestAnUnknownKeyIsRejected(t *testing.T) {
	t.Setenv("MILLRACE_OUTBOX_BATCH_SIZE", "1") // one underscore too few

	if _, err := config.Load("", nil); err == nil || !strings.Contains(err.Error(), "outbox_batch_size: unknown configuration key") {
		t.Errorf("got %v", err)
	}
}

func TestListsOfObjects(t *testing.T) {
	const text = `
broker:
  bind:
    - {topic: user.events, broker: kafka}
consumer:
  per_topic:
    - {topic: notifications, park_attempts: 50, park_max_interval: 1h}
payment:
  simulated:
    rules:
      - {order: "slow-*", action: decline}
`

	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	t.Setenv("DATABASE_URL", "postgres://localhost/x")

	fromFile, err := config.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}

	if err := fromFile.Validate(); err != nil {
		t.Error(err)
	}

	t.Setenv("MILLRACE_BROKER__BIND", `[{"topic": "user.events", "broker": "kafka"}]`)
	t.Setenv("MILLRACE_CONSUMER__PER_TOPIC", `[{"topic": "notifications", "park_attempts": 50, "park_max_interval": "1h"}]`)
	t.Setenv("MILLRACE_PAYMENT__SIMULATED__RULES", `[{"order": "slow-*", "action": "decline"}]`)

	fromEnvironment, err := config.Load("", nil)
	if err != nil {
		t.Fatal(err)
	}

	if diff := cmp.Diff(fromFile, fromEnvironment); diff != "" {
		t.Errorf("the environment differs from the file: %s", diff)
	}

	printed, err := config.Print(fromFile)
	if err != nil || !strings.Contains(printed, "park_max_interval: 1h0m0s") || strings.Contains(printed, "retries: null") {
		t.Errorf("printed %s, %v", printed, err)
	}
}

func TestMistakesInListsAreNamed(t *testing.T) {
	for want, value := range map[string]string{
		"consumer.per_topic[0].retrys: unknown configuration key": `[{"topic": "a", "retrys": 1}]`,
		"expected a JSON array":                                   `notifications retries=1`,
	} {
		t.Setenv("MILLRACE_CONSUMER__PER_TOPIC", value)

		if _, err := config.Load("", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, expected %q", err, want)
		}
	}
}

func TestSecretsAreHidden(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://user:hunter2@host/db")
	t.Setenv("MILLRACE_BROKER__RABBITMQ__URL", "amqp://user:hunter2@host/")
	t.Setenv("MILLRACE_PAYMENT__STRIPE__SECRET_KEY", "sk_live_hunter2")
	t.Setenv("MILLRACE_PAYMENT__STRIPE__WEBHOOK_SECRET", "whsec_hunter2,whsec_hunter2")

	cfg, err := config.Load("", nil)
	if err != nil {
		t.Fatal(err)
	}

	text, err := config.Print(cfg)
	if err != nil || strings.Contains(text, "hunter2") || !strings.Contains(text, "(redacted)") {
		t.Errorf("printed %s, %v", text, err)
	}
}
