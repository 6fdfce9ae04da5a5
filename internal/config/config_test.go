package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/httpapi"
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

// An operator API is refused, with a remedy, if others can reach it without logging in or
// can read the credentials sent to it.
func TestAnOperatorAPIThatOthersReachNeedsAuthenticationAndTLS(t *testing.T) {
	t.Parallel()

	const auth, tls = "http.authentication is none; set http.authentication to required", "http.tls is none; set http.tls to files"

	for name, c := range map[string]struct {
		change func(*httpapi.Config)
		want   []string
	}{
		"the defaults":                  {func(*httpapi.Config) {}, nil},
		"all addresses":                 {func(c *httpapi.Config) { c.Addr = "0.0.0.0:9464" }, []string{auth, tls}},
		"all addresses, without a host": {func(c *httpapi.Config) { c.Addr = ":9464" }, []string{auth, tls}},
		"a name":                        {func(c *httpapi.Config) { c.Addr = "millrace.example:9464" }, []string{auth, tls}},
		"authentication alone":          {func(c *httpapi.Config) { c.Addr, c.Authentication = "0.0.0.0:9464", "required" }, []string{tls}},
		"TLS alone":                     {func(c *httpapi.Config) { c.Addr, c.TLS, c.CertFile, c.KeyFile = "0.0.0.0:9464", "files", "c", "k" }, []string{auth}},
		"both":                          {func(c *httpapi.Config) { c.Addr, c.Authentication, c.TLS = "0.0.0.0:9464", "required", "terminated" }, nil},
		"a proxy in front of loopback":  {func(c *httpapi.Config) { c.TLS = "terminated" }, []string{"http.tls: is terminated, so others can connect through the proxy"}},
		"loopback with authentication":  {func(c *httpapi.Config) { c.Authentication = "required" }, nil},
		"webhooks":                      {func(c *httpapi.Config) { c.WebhooksAddr = "0.0.0.0:9466" }, []string{"http.webhooks_addr", tls}},
		"webhooks with TLS": {func(c *httpapi.Config) {
			c.WebhooksAddr, c.TLS, c.CertFile, c.KeyFile = "0.0.0.0:9466", "files", "c", "k"
		}, nil},
		"files without files":              {func(c *httpapi.Config) { c.TLS = "files" }, []string{"http.cert_file: is missing", "http.key_file: is missing"}},
		"files that nobody uses":           {func(c *httpapi.Config) { c.CertFile = "c" }, []string{"set http.tls to files"}},
		"a provider that nobody asks":      {func(c *httpapi.Config) { provider(c); c.Authentication = "none" }, []string{"http.oidc: is set, but not used"}},
		"a provider":                       {provider, nil},
		"a provider without an audience":   {func(c *httpapi.Config) { provider(c); c.OIDC.Audience = "" }, []string{"tokens for any other application would be accepted"}},
		"a provider without encryption":    {func(c *httpapi.Config) { provider(c); c.OIDC.Issuer = "http://login.example" }, []string{"http.oidc.issuer: is"}},
		"a provider that gives no roles":   {func(c *httpapi.Config) { provider(c); c.OIDC.Roles = nil }, []string{"http.oidc.roles: is empty"}},
		"a role that does not exist":       {func(c *httpapi.Config) { provider(c); c.OIDC.Roles[0].Role = "root" }, []string{"http.oidc.roles[0].role: is"}},
		"a client secret without a client": {func(c *httpapi.Config) { provider(c); c.OIDC.ClientSecret = "x" }, []string{"http.oidc.client_id: is missing"}},
		"a client without a provider":      {func(c *httpapi.Config) { c.OIDC.ClientID = "x" }, []string{"http.oidc.issuer: is missing"}},
		"an audience without a provider":   {func(c *httpapi.Config) { c.OIDC.Audience = "x" }, []string{"http.oidc.issuer: is missing"}},
		"an unknown kind of log-in":        {func(c *httpapi.Config) { c.Authentication = "yes" }, []string{"http.authentication: is"}},
	} {
		cfg := httpapi.DefaultConfig()
		c.change(&cfg)

		err := cfg.Validate()
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, expected %q", name, err, c.want)
		}

		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, expected %q", name, err, want)
			}
		}
	}
}

func provider(c *httpapi.Config) {
	c.Authentication = "required"
	c.OIDC.Issuer, c.OIDC.Audience, c.OIDC.Roles = "https://login.example", "millrace", []access.Mapping{{Value: "admins", Role: access.Admin}}
}

func TestVariablesOfPlatformsAreIgnored(t *testing.T) {
	// Kubernetes injects these into every pod of a namespace with Services named
	// millrace, millrace-postgres, millrace-kafka and millrace-notification-email.
	for _, service := range []string{"MILLRACE", "MILLRACE_POSTGRES", "MILLRACE_KAFKA", "MILLRACE_NOTIFICATION_EMAIL", "MILLRACE_HTTP"} {
		t.Setenv(service+"_SERVICE_HOST", "10.0.0.1")
		t.Setenv(service+"_SERVICE_PORT", "80")
		t.Setenv(service+"_SERVICE_PORT_HTTP_METRICS", "80")
		t.Setenv(service+"_PORT", "tcp://10.0.0.1:80")
		t.Setenv(service+"_PORT_80_TCP", "tcp://10.0.0.1:80")
		t.Setenv(service+"_PORT_80_TCP_PROTO", "tcp")
		t.Setenv(service+"_PORT_80_TCP_PORT", "80")
		t.Setenv(service+"_PORT_80_TCP_ADDR", "10.0.0.1")
		t.Setenv(service+"_PORT_53_UDP", "udp://10.0.0.1:53")
	}

	links := config.ServiceLinks()
	if len(links) != 45 || links[0] != "MILLRACE_HTTP_PORT" || !slices.Contains(links, "MILLRACE_POSTGRES_SERVICE_HOST") {
		t.Errorf("%d links are named: %v", len(links), links)
	}

	// People and images set these.
	for _, name := range []string{"VERSION", "ENV", "IMAGE", "HOME", "USER", "LOG", "PAYMENT", "POSTGRES_PASSWORD"} {
		t.Setenv("MILLRACE_"+name, "1")
	}

	t.Setenv("DATABASE_URL", "")

	cfg, err := config.Load("", nil)
	if diff := cmp.Diff(config.Default(), cfg); err != nil || diff != "" {
		t.Errorf("got %v, %s", err, diff)
	}

	if now := config.ServiceLinks(); !slices.Equal(now, links) {
		t.Errorf("what people set is named as a link: %v", now)
	}

	// A typo is reported even though it resembles a link.
	t.Setenv("MILLRACE_HTTP__PORT", "tcp://10.0.0.1:80")

	if _, err := config.Load("", nil); err == nil || !strings.Contains(err.Error(), "MILLRACE_HTTP__PORT: unknown configuration key") {
		t.Errorf("a typing mistake beside links: got %v", err)
	}
}

// filesIn returns a function that writes files into a directory.
func filesIn(t *testing.T, dir string) func(name, content string) string {
	t.Helper()

	return func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}

		return path
	}
}

// Platforms mount secrets as files, to keep them out of the environment. The YAML file
// may name a file for each secret.
func TestSecretsMayBeInFiles(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://from-database-url/x")

	file := filesIn(t, t.TempDir())

	page, err := os.ReadFile("../../docs/configuring.md")
	if err != nil {
		t.Fatal(err)
	}

	for _, key := range config.Secrets() {
		if !strings.Contains(string(page), "`"+key+"_file`") {
			t.Errorf("docs/configuring.md lacks %s_file", key)
		}

		if key == "postgres.url" {
			continue // DATABASE_URL overrides the file
		}

		nested := file(key, "hunter2 of "+key+"\r\n")

		parts := strings.Split(key, ".")
		text := strings.Join(parts[:len(parts)-1], ": {") + ": {" + parts[len(parts)-1] +
			"_file: \"" + nested + "\"" + strings.Repeat("}", len(parts)-1) + "\n"

		cfg, err := config.Load(file("c.yaml", text), nil)
		if err != nil {
			t.Fatal(err)
		}

		if got := fmt.Sprintf("%#v", config.Flatten(cfg)[key]); !strings.Contains(got, "hunter2 of "+key+`"`) {
			t.Errorf("%s: got %s", key, got)
		}
	}
}

// A setting is a secret if its type says so, and the type is easy to forget.
func TestASettingThatIsNamedLikeASecretIsOne(t *testing.T) {
	t.Parallel()

	public := []string{"broker.kafka.token_url"}
	named := regexp.MustCompile(`(password|passphrase|secret|token|credential|api_key|private_key)[^.]*$`)

	for key := range config.Flatten(config.Default()) {
		if named.MatchString(key) && !slices.Contains(config.Secrets(), key) && !slices.Contains(public, key) {
			t.Errorf("%s is named like a secret: make its type postgres.Secret", key)
		}
	}
}

// The environment may also name files, and it overrides the YAML file.
func TestTheEnvironmentMayNameFilesWithSecrets(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://from-database-url/x")

	dir := t.TempDir()
	file := filesIn(t, dir)

	t.Setenv("MILLRACE_HTTP__TOKEN_FILE", file("token", "from the environment"))
	t.Setenv("MILLRACE_POSTGRES__URL_FILE", file("url", "postgres://from-file/x\n"))

	cfg, err := config.Load(file("c.yaml", "http: {token: from the file}"), nil)
	if err != nil || cfg.HTTP.Token != "from the environment" || cfg.Postgres.URL != "postgres://from-file/x" {
		t.Errorf("got %q %q, %v", string(cfg.HTTP.Token), string(cfg.Postgres.URL), err)
	}

	for want, value := range map[string]string{
		"http.token_file: open":                            filepath.Join(dir, "missing"),
		"http.token_file: the file " + file("empty", "\n"): filepath.Join(dir, "empty"),
	} {
		t.Setenv("MILLRACE_HTTP__TOKEN_FILE", value)

		if _, err := config.Load("", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, expected %q", err, want)
		}
	}

	t.Setenv("MILLRACE_HTTP__TOKEN", "hunter2")

	if _, err := config.Load("", nil); err == nil || err.Error() == "" || !strings.Contains(err.Error(), "http.token, http.token_file: are both set") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}

	t.Setenv("MILLRACE_HTTP__TOKEN_FILES", "x")

	if _, err := config.Load("", nil); err == nil || !strings.Contains(err.Error(), "did you mean MILLRACE_HTTP__TOKEN_FILE?") {
		t.Errorf("a typing mistake: got %v", err)
	}
}

func TestUnknownKeysAreNamedWithTheNearestOne(t *testing.T) {
	for name, want := range map[string]string{
		"MILLRACE_OUTBOX_BATCH_SIZE":       "MILLRACE_OUTBOX_BATCH_SIZE: unknown configuration key; did you mean MILLRACE_OUTBOX__BATCH_SIZE?",
		"MILLRACE_OUTBOX__BATCHSIZE":       "MILLRACE_OUTBOX__BATCHSIZE: unknown configuration key; did you mean MILLRACE_OUTBOX__BATCH_SIZE?",
		"MILLRACE_LOG_LEVEL":               "did you mean MILLRACE_LOG__LEVEL?",
		"MILLRACE_POSTGRES_URI":            "did you mean MILLRACE_POSTGRES__URL?",
		"MILLRACE_NOTIFICATION_EMAIL_PORT": "did you mean MILLRACE_NOTIFICATION__EMAIL__PORT?",
		"MILLRACE_NOTHING__LIKE_IT":        "MILLRACE_NOTHING__LIKE_IT: unknown configuration key; `millrace config` lists all keys",
		"MILLRACE_BROKER__BIND__TOPIC":     "MILLRACE_BROKER__BIND__TOPIC: unknown configuration key",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, "25")

			if _, err := config.Load("", nil); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, expected %q", err, want)
			}
		})
	}

	for text, want := range map[string]string{
		"outbx: {batch_size: 1}":                            "outbx: unknown configuration key; did you mean outbox?",
		"outbox: {batchsize: 1}":                            "outbox.batchsize: unknown configuration key; did you mean outbox.batch_size?",
		"consumer: {per_topic: [{topic: a, retrys: 1}]}":    "consumer.per_topic[0].retrys: unknown configuration key; did you mean consumer.per_topic.retries?",
		"broker: {bind: [{topic: a, broker: b, extra: 1}]}": "broker.bind[0].extra: unknown configuration key; `millrace config` lists all keys",
	} {
		if _, err := config.Load(written(t, text), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, expected %q", text, err, want)
		}
	}
}

func written(t *testing.T, text string) string {
	t.Helper()

	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	return file
}

func TestTheEnvironmentIsAboveTheFile(t *testing.T) {
	const platform, own, flag = "postgres://platform/db", "postgres://own/db", "postgres://flag/db"

	for name, c := range map[string]struct {
		file, databaseURL, variable string
		overrides                   map[string]any
		want                        string
	}{
		"an empty key in the file":         {file: `""`, databaseURL: platform, want: platform},
		"another URL in the file":          {file: "postgres://file/db", databaseURL: platform, want: platform},
		"only the file":                    {file: "postgres://file/db", want: "postgres://file/db"},
		"the variable of the key":          {file: "postgres://file/db", databaseURL: platform, variable: own, want: own},
		"a flag":                           {file: "postgres://file/db", databaseURL: platform, variable: own, overrides: map[string]any{"postgres.url": flag}, want: flag},
		"an empty flag":                    {file: "postgres://file/db", overrides: map[string]any{"postgres.url": ""}, want: "postgres://file/db"},
		"the variable, and no file or URL": {file: `""`, variable: own, want: own},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("DATABASE_URL", c.databaseURL)
			t.Setenv("MILLRACE_POSTGRES__URL", c.variable)

			cfg, err := config.Load(written(t, "postgres: {url: "+c.file+"}"), c.overrides)
			if err != nil || string(cfg.Postgres.URL) != c.want {
				t.Errorf("got %q, %v, expected %q", string(cfg.Postgres.URL), err, c.want)
			}
		})
	}
}

func TestAnEmptyValueIsUnset(t *testing.T) {
	t.Setenv("DATABASE_URL", "")

	empty := map[string]any{}

	for key := range config.Flatten(config.Default()) {
		t.Setenv("MILLRACE_"+strings.ToUpper(strings.ReplaceAll(key, ".", "__")), "")

		empty[key] = ""
	}

	text := `
consumer: {retries: "", park_attempts: , retry_interval: "", per_topic: ""}
postgres: {url: "", migrate_on_start: "", max_conns: }
payment: {simulated: {ledger: "", latency: "", decline_rate: ""}}
broker: {kafka: {brokers: "", tls: ""}}
http:
`

	cfg, err := config.Load(written(t, text), empty)
	if diff := cmp.Diff(config.Default(), cfg); err != nil || diff != "" {
		t.Errorf("got %v, %s", err, diff)
	}

	t.Setenv("MILLRACE_CONSUMER__PER_TOPIC", `[{"topic": "notifications", "retries": "", "park_attempts": null, "retry_interval": ""}]`)

	cfg, err = config.Load(written(t, "consumer: {per_topic: [{topic: a, retries: \"\"}]}"), nil)
	if err != nil || len(cfg.Consumer.PerTopic) != 1 || cfg.Consumer.PerTopic[0].Retries != nil || cfg.Consumer.PerTopic[0].ParkAttempts != nil ||
		cfg.Consumer.PerTopic[0].RetryInterval != nil {
		t.Errorf("got %+v, %v", cfg.Consumer.PerTopic, err)
	}
}

func TestAValueIsNeverSilentlyAnother(t *testing.T) {
	for text, want := range map[string]string{
		"consumer: {handler_timeout: 20}":                   "is 20, expected a duration with a unit, such as 20s",
		"fulfilment: {payment_timeout: 15}":                 "is 15, expected a duration with a unit, such as 20s",
		"consumer: {retries: 2.5}":                          "is 2.5, expected a whole number",
		"postgres: {migrate_on_start: maybe}":               `postgres.migrate_on_start: is "maybe", expected true or false`,
		"payment: {simulated: {decline_rate: often}}":       `payment.simulated.decline_rate: is "often", expected a number`,
		"consumer: {handler_timeout: soon}":                 `consumer.handler_timeout: is "soon", expected a duration with a unit, such as 20s`,
		"log: {level: [debug]}":                             "log.level: is a list, expected text",
		"consumer: {per_topic: [{topic: a, retries: x}]}":   `consumer.per_topic[0].retries: is "x", expected a whole number`,
		"consumer: {retries: x, min_batch: y}":              `consumer.retries: is "x", expected a whole number`,
		"consumer: {retries: true}":                         "is true, expected a whole number",
		"consumer: {per_topic: [{topic: a, retries: 2.5}]}": "is 2.5, expected a whole number",
	} {
		_, err := config.Load(written(t, text), nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "decoding") {
			t.Errorf("%s: got %v, expected %q", text, err, want)
		}
	}

	for text, want := range map[string]string{
		"010":   `is "010", expected a whole number`,
		"0x10":  `is "0x10", expected a whole number`,
		"1_000": `is "1_000", expected a whole number`,
		"many":  `is "many", expected a whole number`,
	} {
		if _, err := config.Load("", map[string]any{"postgres.max_conns": text}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, expected %q", text, err, want)
		}
	}

	cfg, err := config.Load(written(t, "payment: {simulated: {latency: 0}}\nconsumer: {retries: 2.0, handler_timeout: 20s}"), nil)
	if err != nil || cfg.Consumer.Retries != 2 {
		t.Errorf("got %+v, %v", cfg.Consumer, err)
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

func TestThePathOfAWebhookIsHidden(t *testing.T) {
	t.Parallel()

	cfg := config.Default()

	for address, want := range map[string]string{
		"https://h.example/hunter2secret": "https://h.example/(redacted)",
		"https://h.example/a/b?c=d":       "https://h.example/(redacted)?(redacted)",
		"https://h.example":               "https://h.example",
		"https://h.example/":              "https://h.example/",
		"":                                "",
	} {
		cfg.Notification.Webhook.URL = scrub.URL(address)

		if got := config.Redacted(cfg)["notification.webhook.url"]; got != want {
			t.Errorf("%s: got %s, expected %s", address, got, want)
		}
	}
}

func TestSecretsAreHidden(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://user:hunter2@host/db")
	t.Setenv("MILLRACE_BROKER__RABBITMQ__URL", "amqp://user:hunter2@host/")
	t.Setenv("MILLRACE_PAYMENT__STRIPE__SECRET_KEY", "sk_live_hunter2")
	t.Setenv("MILLRACE_PAYMENT__STRIPE__WEBHOOK_SECRET", "whsec_hunter2,whsec_hunter2")
	t.Setenv("MILLRACE_PAYMENT__STRIPE__URL", "https://user:hunter2@proxy.example/stripe?key=hunter2")
	t.Setenv("MILLRACE_NOTIFICATION__WEBHOOK__URL", "https://user:hunter2@hooks.example/services/T01ABCDEF/hunter2hunter2hunter2?token=hunter2#hunter2")
	t.Setenv("MILLRACE_NOTIFICATION__WEBHOOK__SECRET", "whsec_hunter2")
	t.Setenv("MILLRACE_NOTIFICATION__EMAIL__PASSWORD", "hunter2")
	t.Setenv("MILLRACE_BROKER__KAFKA__PASSWORD", "hunter2")
	t.Setenv("MILLRACE_BROKER__KAFKA__BROKERS", "sasl://user:hunter2@kafka:9092,other:9092")

	cfg, err := config.Load("", nil)
	if err != nil {
		t.Fatal(err)
	}

	text, err := config.Print(cfg)
	if err != nil || strings.Contains(text, "hunter2") {
		t.Errorf("printed %s, %v", text, err)
	}

	asJSON, err := json.Marshal(config.Redacted(cfg))
	if err != nil || strings.Contains(string(asJSON), "hunter2") {
		t.Errorf("printed %s, %v", asJSON, err)
	}

	for _, want := range []string{
		"url: (redacted)", "url: https://(redacted)@proxy.example/stripe?(redacted)", "url: https://(redacted)@hooks.example/(redacted)?(redacted)",
		"- sasl://(redacted)@kafka:9092", "- other:9092",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing: %s", want, text)
		}
	}
}

// FuzzSettings gives any value to any setting: it is refused with an error that names the
// setting, or it is the setting's value.
func FuzzSettings(f *testing.F) {
	f.Add("outbox.batch_size", "512")
	f.Add("consumer.per_topic", `[{"topic":"orders.created","retries":1}]`)
	f.Add("broker.kafka.brokers", "a:1,b:2")
	f.Add("postgres.url", "postgres://a:b@[::1]:5432/c?sslmode=%zz")
	f.Add("notifications.webhook.url", "https://a\x00b/")
	f.Add("outbox.poll_interval", "9223372036854775807ns")
	f.Add("payment.simulated.decline_rate", "NaN")
	f.Fuzz(func(t *testing.T, key, value string) {
		settings := map[string]any{"postgres.url": "postgres://host/db"}
		settings[key] = value

		cfg, err := config.Load("", settings)
		if err == nil {
			err = errors.Join(cfg.Validate(), cfg.Warn())
		}

		if err == nil {
			return
		}

		if section, _, _ := strings.Cut(key, "."); section != "" && event.Printable(section) && !strings.Contains(err.Error(), section) {
			t.Errorf("%q = %q: the error does not name the setting: %v", key, value, err)
		}
	})
}
