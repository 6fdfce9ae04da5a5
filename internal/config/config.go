// Package config loads the configuration: defaults, then a YAML file, then the
// environment, then flags. Each package owns its section.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/engine/upkeep"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/shop/user"
	"github.com/millracehq/millrace/internal/telemetry"
)

// Config is the whole configuration.
type Config struct {
	Postgres     postgres.Config     `koanf:"postgres"`
	Broker       broker.Config       `koanf:"broker"`
	Consumer     consumer.Config     `koanf:"consumer"`
	Inbox        inbox.Config        `koanf:"inbox"`
	Outbox       outbox.Config       `koanf:"outbox"`
	Payment      payment.Config      `koanf:"payment"`
	Failed       failed.Config       `koanf:"failed"`
	Fulfilment   fulfilment.Config   `koanf:"fulfilment"`
	User         user.Config         `koanf:"user"`
	Notification notification.Config `koanf:"notification"`
	Analytics    analytics.Config    `koanf:"analytics"`
	Upkeep       upkeep.Config       `koanf:"upkeep"`
	HTTP         httpapi.Config      `koanf:"http"`
	Log          telemetry.Config    `koanf:"log"`
}

// Default returns the defaults.
func Default() Config {
	return Config{
		Postgres:     postgres.DefaultConfig(),
		Broker:       broker.DefaultConfig(),
		Consumer:     consumer.DefaultConfig(),
		Inbox:        inbox.DefaultConfig(),
		Outbox:       outbox.DefaultConfig(),
		Payment:      payment.DefaultConfig(),
		Failed:       failed.DefaultConfig(),
		Fulfilment:   fulfilment.DefaultConfig(),
		User:         user.DefaultConfig(),
		Notification: notification.DefaultConfig(),
		Analytics:    analytics.DefaultConfig(),
		Upkeep:       upkeep.DefaultConfig(),
		HTTP:         httpapi.DefaultConfig(),
		Log:          telemetry.DefaultConfig(),
	}
}

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	return errors.Join(c.Postgres.Validate(), c.Broker.Validate(), c.Consumer.Validate(),
		c.Inbox.Validate(), c.Outbox.Validate(), c.Payment.Validate(), c.Failed.Validate(), c.Fulfilment.Validate(),
		c.User.Validate(), c.Notification.Validate(), c.Analytics.Validate(), c.Upkeep.Validate(), c.HTTP.Validate(), c.Log.Validate())
}

// envPrefix is the prefix of environment variables that set a key:
// MILLRACE_OUTBOX__BATCH_SIZE sets outbox.batch_size.
const envPrefix = "MILLRACE_"

// testPrefix is the prefix of variables that only tests use.
const testPrefix = "MILLRACE_TEST_"

// Load reads the configuration from the file at path, if any, the environment, and
// overrides by key. It rejects unknown keys; Validate checks the values.
func Load(path string, overrides map[string]any) (Config, error) {
	cfg := Default()
	k := koanf.New(".")

	if url := os.Getenv("DATABASE_URL"); url != "" {
		if err := k.Load(confmap.Provider(map[string]any{"postgres.url": url}, "."), nil); err != nil {
			return cfg, fmt.Errorf("reading DATABASE_URL: %w", err)
		}
	}

	if path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return cfg, fmt.Errorf("reading configuration %s: %w", path, err)
		}
	}

	if err := k.Load(environment(), nil); err != nil {
		return cfg, fmt.Errorf("reading environment: %w", err)
	}

	if err := k.Load(confmap.Provider(overrides, "."), nil); err != nil {
		return cfg, fmt.Errorf("reading flags: %w", err)
	}

	return cfg, decode(k, &cfg)
}

// decode sets the fields of cfg and reports unknown keys, including those in lists.
func decode(k *koanf.Koanf, cfg *Config) error {
	var found mapstructure.Metadata

	errs := []error{k.UnmarshalWithConf("", cfg, koanf.UnmarshalConf{Tag: "koanf", DecoderConfig: &mapstructure.DecoderConfig{
		Result:           cfg,
		Metadata:         &found,
		TagName:          "koanf",
		MatchName:        func(key, field string) bool { return key == field },
		WeaklyTypedInput: true,
		DecodeHook:       mapstructure.ComposeDecodeHookFunc(mapstructure.StringToTimeDurationHookFunc(), listFromText),
	}})}

	slices.Sort(found.Unused)

	for _, key := range found.Unused {
		errs = append(errs, fmt.Errorf("%s: unknown configuration key; `millrace config` lists all keys (in environment variables, two underscores separate the parts: MILLRACE_OUTBOX__BATCH_SIZE)", key))
	}

	return errors.Join(errs...)
}

// listFromText lets the environment and flags set lists: as "a:9092,b:9092", or as a
// JSON array of objects.
func listFromText(from, to reflect.Type, value any) (any, error) {
	text, isText := value.(string)
	if from.Kind() != reflect.String || to.Kind() != reflect.Slice || !isText {
		return value, nil
	}

	if to.Elem().Kind() == reflect.Struct || strings.HasPrefix(text, "[") {
		var list []any
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, fmt.Errorf("is %q, expected a JSON array: %w", text, err)
		}

		return list, nil
	}

	return slices.DeleteFunc(strings.Split(text, ","), func(element string) bool { return element == "" }), nil
}

func environment() *env.Env {
	return env.Provider(".", env.Opt{
		Prefix: envPrefix,
		TransformFunc: func(name, value string) (string, any) {
			if strings.HasPrefix(name, testPrefix) {
				return "", nil
			}

			key := strings.ToLower(strings.TrimPrefix(name, envPrefix))

			return strings.ReplaceAll(key, "__", "."), value
		},
	})
}

// Flatten returns all keys with their values.
func Flatten(cfg Config) map[string]any {
	k := koanf.New(".")
	// Loading a struct cannot fail.
	_ = k.Load(structs.Provider(cfg, "koanf"), nil)

	return k.All()
}

// Redacted returns all keys with their values as text, with secrets hidden, also those
// in URLs.
func Redacted(cfg Config) map[string]any {
	flat := Flatten(cfg)
	for key, value := range flat {
		switch value := value.(type) {
		case fmt.Stringer:
			flat[key] = value.String()
		case string:
			flat[key] = scrub.Text(value)
		case []string:
			flat[key] = postgres.Column(value, scrub.Text)
		}
	}

	return flat
}

// Print formats the configuration as YAML, with secrets hidden.
func Print(cfg Config) (string, error) {
	k := koanf.New(".")
	if err := k.Load(confmap.Provider(Redacted(cfg), "."), nil); err != nil {
		return "", fmt.Errorf("printing configuration: %w", err)
	}

	out, err := k.Marshal(yaml.Parser())
	if err != nil {
		return "", fmt.Errorf("printing configuration: %w", err)
	}

	return string(out), nil
}
