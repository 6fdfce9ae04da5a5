// Package config loads the configuration: defaults, then a YAML file, then the
// environment, then flags. Each package owns its section.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/maps"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
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
	Postgres     postgres.Config        `koanf:"postgres"`
	Broker       broker.Config          `koanf:"broker"`
	Consumer     consumer.Config        `koanf:"consumer"`
	Inbox        inbox.Config           `koanf:"inbox"`
	Outbox       outbox.Config          `koanf:"outbox"`
	Payment      payment.Config         `koanf:"payment"`
	Failed       failed.Config          `koanf:"failed"`
	Fulfilment   fulfilment.Config      `koanf:"fulfilment"`
	User         user.Config            `koanf:"user"`
	Notification notification.Config    `koanf:"notification"`
	Analytics    analytics.Config       `koanf:"analytics"`
	Upkeep       upkeep.Config          `koanf:"upkeep"`
	Health       httpapi.HealthConfig   `koanf:"health"`
	HTTP         httpapi.Config         `koanf:"http"`
	Log          telemetry.Config       `koanf:"log"`
	Traces       telemetry.TracesConfig `koanf:"traces"`
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
		Health:       httpapi.DefaultHealthConfig(),
		HTTP:         httpapi.DefaultConfig(),
		Log:          telemetry.DefaultConfig(),
		Traces:       telemetry.DefaultTracesConfig(),
	}
}

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	return errors.Join(c.Postgres.Validate(), c.Broker.Validate(), c.Consumer.Validate(),
		c.Inbox.Validate(), c.Outbox.Validate(), c.Payment.Validate(), c.Failed.Validate(), c.Fulfilment.Validate(),
		c.User.Validate(), c.Notification.Validate(), c.Analytics.Validate(), c.Upkeep.Validate(),
		c.Health.Validate(), c.HTTP.Validate(), c.apart(), c.Log.Validate(), c.Traces.Validate())
}

// apart returns an error if two listeners have the same address.
func (c Config) apart() error {
	type setting struct{ key, addr string }

	list := []setting{{"health.addr", c.Health.Addr}, {"http.addr", c.HTTP.Addr}, {"http.webhooks_addr", c.HTTP.WebhooksAddr}}
	for i, s := range list {
		for _, other := range list[:i] {
			if s.addr == other.addr && !strings.HasSuffix(s.addr, ":0") {
				return fmt.Errorf("%s: is %q, the same as %s, expected an address of its own", s.key, s.addr, other.key)
			}
		}
	}

	return nil
}

// Warn returns an error that lists settings that are valid but probably unintended,
// naming the keys: secrets that can be read on the network (not a mistake, because
// private networks are often unencrypted), and settings that have no effect.
func (c Config) Warn() error {
	return errors.Join(c.Postgres.Warn(), c.Broker.Warn(), c.Payment.Warn(), c.Notification.Warn())
}

// Warnings returns the lines of Warn, and the effects of defaults that may be unexpected.
func Warnings(c Config) check.Warnings {
	var list check.Warnings

	if err := c.Warn(); err != nil {
		list = strings.Split(err.Error(), "\n")
	}

	if c.Notification.Email.Host == "" {
		list = append(list, "notification.email.host: is not set, so no e-mail is sent; set it to the mail server")
	}

	return list
}

// Load reads the configuration from the file at path, if any, from the environment, and
// from overrides by key. Each source overrides the ones before it. An empty value
// counts as not set. A secret may be in a file named by KEY_file. Load rejects unknown
// keys; Validate checks the values.
func Load(path string, overrides map[string]any) (Config, error) {
	cfg := Default()
	k := koanf.New(".")

	if path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser(), merging); err != nil {
			return cfg, fmt.Errorf("reading configuration %s: %w", path, err)
		}
	}

	variables, err := environment()
	if err != nil {
		return cfg, err
	}

	for _, above := range []map[string]any{variables, overrides} {
		if err := k.Load(confmap.Provider(above, "."), nil, merging); err != nil {
			return cfg, fmt.Errorf("reading environment and flags: %w", err)
		}
	}

	return cfg, decode(k, &cfg)
}

// merging lets a source override the others and drops its empty values.
var merging = koanf.WithMergeFunc(func(src, dest map[string]any) error {
	dropEmpty(src)

	err := readSecrets(src)
	maps.Merge(src, dest)

	return err
})

// dropEmpty removes empty values: a value that a template leaves blank means the default,
// not 0 or false.
func dropEmpty(values any) {
	switch values := values.(type) {
	case map[string]any:
		for key, value := range values {
			if value == nil || value == "" {
				delete(values, key)
			}

			dropEmpty(value)
		}
	case []any:
		for _, value := range values {
			dropEmpty(value)
		}
	}
}

// decode sets the fields of cfg and reports unknown keys, including those in lists.
func decode(k *koanf.Koanf, cfg *Config) error {
	var found mapstructure.Metadata

	errs := []error{named(k.UnmarshalWithConf("", cfg, koanf.UnmarshalConf{Tag: "koanf", DecoderConfig: &mapstructure.DecoderConfig{
		Result:           cfg,
		Metadata:         &found,
		TagName:          "koanf",
		MatchName:        func(key, field string) bool { return key == field },
		WeaklyTypedInput: true,
		DecodeHook:       mapstructure.ComposeDecodeHookFunc(sameNumber, mapstructure.StringToTimeDurationHookFunc(), listFromText),
	}}))}

	slices.Sort(found.Unused)

	for _, key := range found.Unused {
		errs = append(errs, unknown(key, event.Nearest(elements.ReplaceAllString(key, ""), names())))
	}

	return errors.Join(errs...)
}

// named returns the decoding errors, each with the key, the value and what was
// expected.
func named(err error) error {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return errors.Join(postgres.Column(all.Unwrap(), named)...)
	}

	decoding, ok := errors.AsType[*mapstructure.DecodeError](err)
	if !ok {
		return err
	}

	inner := decoding.Unwrap()
	if within := named(inner); within != inner { //nolint:errorlint // the same error if it wraps no other
		return within
	}

	if parse, ok := errors.AsType[*mapstructure.ParseError](inner); ok {
		inner = fmt.Errorf("is %q, expected %s", parse.Value, expected(parse.Expected.Type()))
	}

	if other, ok := errors.AsType[*mapstructure.UnconvertibleTypeError](inner); ok {
		inner = fmt.Errorf("is %s, expected %s", expected(reflect.TypeOf(other.Value)), expected(other.Expected.Type()))
	}

	return fmt.Errorf("%s: %w", decoding.Name(), inner)
}

// expected describes a type to the person who sets a key.
func expected(t reflect.Type) string {
	switch kind := t.Kind(); {
	case kind == reflect.Bool:
		return "true or false"
	case kind == reflect.String:
		return "text"
	case kind == reflect.Float64:
		return "a number"
	case kind >= reflect.Int && kind <= reflect.Uint64:
		return "a whole number"
	case kind == reflect.Slice:
		return "a list"
	default:
		return "keys and values"
	}
}

// elements matches the index of a list element in the name of a key.
var elements = regexp.MustCompile(`\[\d+\]`)

func unknown(name string, near []string) error {
	if len(near) > 0 {
		return fmt.Errorf("%s: unknown configuration key; did you mean %s?", name, strings.Join(near, " or "))
	}

	return fmt.Errorf("%s: unknown configuration key; `millrace config` lists all keys", name)
}

// names returns the names of all sections and keys, and those of list elements.
func names() (list []string) {
	var add func(t reflect.Type, within string)

	add = func(t reflect.Type, within string) {
		if t.Kind() == reflect.Slice {
			t = t.Elem()
		}

		for i := 0; t.Kind() == reflect.Struct && i < t.NumField(); i++ {
			if tag, _, _ := strings.Cut(t.Field(i).Tag.Get("koanf"), ","); tag != "" && tag != "-" {
				list = append(list, within+tag)
				add(t.Field(i).Type, within+tag+".")
			}
		}
	}

	add(reflect.TypeFor[Config](), "")

	return append(list, secretFiles()...)
}

// integer matches a decimal number.
var integer = regexp.MustCompile(`^[+-]?(0|[1-9]\d*)$`)

// sameNumber refuses numbers that would silently change: 20 without a unit would be 20
// nanoseconds, 1.5 would be 1, true would be 1, and "010" would be 8.
func sameNumber(from, to reflect.Type, value any) (any, error) {
	isInteger := to.Kind() >= reflect.Int && to.Kind() <= reflect.Uint64

	switch {
	case to == reflect.TypeFor[time.Duration]():
		_, err := time.ParseDuration(fmt.Sprint(value))
		if from.Kind() == reflect.String && err != nil {
			return nil, fmt.Errorf("is %q, expected a duration with a unit, such as 20s", value)
		}

		if from.Kind() != reflect.String && from != to && value != 0 {
			return nil, fmt.Errorf("is %v, expected a duration with a unit, such as 20s", value)
		}
	case isInteger && from.Kind() == reflect.String && !integer.MatchString(fmt.Sprint(value)):
		return nil, fmt.Errorf("is %q, expected a whole number without leading zeros", value)
	case isInteger && from.Kind() == reflect.Bool, isInteger && from.Kind() == reflect.Float64 && value != math.Trunc(value.(float64)): //nolint:forcetypeassert // its kind is Float64
		return nil, fmt.Errorf("is %v, expected a whole number", value)
	}

	return value, nil
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

		dropEmpty(list)

		return list, nil
	}

	return slices.DeleteFunc(strings.Split(text, ","), func(element string) bool { return element == "" }), nil
}

// Flatten returns all keys with their values.
func Flatten(cfg Config) map[string]any {
	k := koanf.New(".")
	// Loading a struct cannot fail.
	_ = k.Load(structs.Provider(cfg, "koanf"), nil)

	return k.All()
}

// Redacted returns all keys with their values as text. It hides secrets, including
// those in URLs.
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
