package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// watch knows the secrets, and collects the programs' output, in which none may appear.
type watch struct {
	*testing.T

	mu      sync.Mutex
	secrets map[string]string // by where they are planted
	shown   map[string]string // by where it is shown
}

func newWatch(t *testing.T) *watch {
	t.Helper()

	w := &watch{T: t, secrets: map[string]string{}, shown: map[string]string{}}
	t.Cleanup(w.check)

	return w
}

// plant returns a new secret of letters and digits, which URLs, quotes and JSON leave
// unchanged.
func (w *watch) plant(place string) string {
	w.mu.Lock()
	defer w.mu.Unlock()

	w.secrets[place] = "canary" + strings.ToLower(rand.Text())

	return w.secrets[place]
}

// saw records a text that is shown somewhere.
func (w *watch) saw(where, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()

	w.shown[where] += text
}

// contains reports whether a text contains a secret: unchanged, in base64 after any other
// bytes, or in hexadecimal, as Postgres prints bytes.
func contains(text, secret string) bool {
	forms := []string{secret, hex.EncodeToString([]byte(secret))}

	for offset := range 3 {
		encoded := base64.StdEncoding.EncodeToString(append(make([]byte, offset), secret...))
		// The first digits depend on what precedes the secret, the last on what follows it.
		forms = append(forms, encoded[(offset*8+5)/6:len(encoded)-4])
	}

	return slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(text, form) })
}

func (w *watch) check() {
	for place, secret := range w.secrets {
		for where, text := range w.shown {
			if contains(text, secret) {
				w.Errorf("%s shows the secret in %s, %s:\n%s", where, place, secret, text)
			}
		}
	}
}

// The search finds what it is meant to find.
func TestASecretIsFoundInEachEncoding(t *testing.T) {
	t.Parallel()

	const secret = "canary2345abcdefgh"

	for _, before := range []string{"", "u:", "user:"} {
		for name, text := range map[string]string{
			"text":           before + secret,
			"a URL":          url.UserPassword(before, "/+@"+secret).String(),
			"base64":         base64.StdEncoding.EncodeToString([]byte(before + secret + "!")),
			"base64 of URLs": base64.RawURLEncoding.EncodeToString([]byte(before + secret)),
			"bytes":          hex.EncodeToString([]byte(before + secret)),
		} {
			if !contains("... "+text, secret) || contains(text, "canary2345zzcdefgh") {
				t.Errorf("behind %q, in %s: %s", before, name, text)
			}
		}
	}
}

// awkward turns a secret into a password that URLs have to encode.
func awkward(secret string) string { return "p@/+" + secret }

// settings is an environment, by configuration key or variable name.
type settings map[string]string

// secretSettings plants a secret in each secret setting, including those added later.
// Some must have a particular format.
func (w *watch) secretSettings() settings {
	s := settings{}
	login := func(scheme, place, address string) string {
		return (&url.URL{Scheme: scheme, User: url.UserPassword("shop", awkward(w.plant(place))), Host: address, Path: "/"}).String()
	}

	for _, key := range config.Secrets() {
		switch key {
		case "postgres.url", "postgres.direct_url":
			s[key] = login("postgres", key, "127.0.0.1:1")
		case "broker.rabbitmq.url":
			s[key] = login("amqp", key, "127.0.0.1:1")
		case "notification.webhook.url":
			s[key] = login("http", key, "127.0.0.1:1") + "in?token=" + w.plant("the query of "+key)
		case "notification.webhook.secret":
			s[key] = "whsec_" + base64.StdEncoding.EncodeToString([]byte(w.plant(key)))
		case "payment.stripe.webhook_secret":
			s[key] = "whsec_" + w.plant(key)
		case "payment.stripe.secret_key":
			s[key] = "sk_test_" + w.plant(key)
		default:
			s[key] = awkward(w.plant(key))
		}
	}

	s["broker.kafka.user"], s["notification.email.user"] = "shop", "shop"
	s["postgres.migrate_on_start"], s["log.level"] = "false", "debug"
	s["traces.endpoint"] = login("http", "traces.endpoint", "127.0.0.1:1") + "v1/traces"
	s["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=Bearer%20" + w.plant("OTEL_EXPORTER_OTLP_HEADERS")
	s["OTEL_BSP_SCHEDULE_DELAY"] = "100"

	return s
}

// with returns the settings overridden by others.
func (s settings) with(others settings) settings {
	s = maps.Clone(s)
	maps.Copy(s, others)

	return s
}

// environ returns the environment. It has no other variables that the program reads.
func (s settings) environ() []string {
	list := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}

	for name, value := range s {
		if strings.Contains(name, ".") {
			name = "MILLRACE_" + strings.ToUpper(strings.ReplaceAll(name, ".", "__"))
		}

		list = append(list, name+"="+value)
	}

	return list
}

// program runs a command and records what it prints.
func (w *watch) program(s settings, args ...string) (out string) {
	w.Helper()

	cmd := exec.CommandContext(context.Background(), "millrace", args...)
	cmd.Env, cmd.Dir = s.environ(), w.TempDir()

	text, err := cmd.CombinedOutput()
	if len(text) == 0 {
		w.Errorf("millrace %q printed nothing: %v", args, err)
	}

	if args[0] != "tokens" { // its purpose is to print a token
		w.saw(fmt.Sprintf("millrace %q", args), string(text))
	}

	return string(text)
}

// serve runs the service and returns its log and a function that drains it.
func (w *watch) serve(s settings) (log *pgtest.Log, drain func()) {
	w.Helper()

	log = &pgtest.Log{}
	cmd := exec.CommandContext(context.Background(), "millrace", "serve")
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.environ(), w.TempDir(), log, log

	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}

	drain = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)

		if err := cmd.Wait(); err != nil {
			w.Errorf("the service did not drain: %v", err)
		}

		w.saw("the log", log.String())

		if w.Failed() {
			w.Log(log)
		}
	})
	w.Cleanup(drain)

	return log, drain
}

// fetch requests a page and records it. It does not verify the service's certificate.
func (w *watch) fetch(address, credential string) (code int, text string) {
	w.Helper()

	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, address, nil)
	if err != nil {
		w.Fatal(err)
	}

	if credential != "" {
		request.Header.Set("Authorization", credential)
	}

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // see above

	response, err := client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()

	body, _ := io.ReadAll(response.Body)
	w.saw(address, string(body)+fmt.Sprint(response.Header))

	return response.StatusCode, string(body)
}

// system is another system: it refuses what it receives and echoes all of it, as some do.
type system struct {
	*httptest.Server

	heard, bodies pgtest.Log
	// takes is true if it accepts all requests but the first.
	takes bool
}

func newSystem(t *testing.T) *system {
	t.Helper()

	s := &system{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		first := s.heard.String() == ""
		_, _ = fmt.Fprintf(&s.heard, "%s %s %v %s\n", r.Method, r.URL, r.Header, body)
		_, _ = s.bodies.Write(body)

		if s.takes && !first {
			return
		}

		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintf(w, `{"error":{"type":"invalid_request_error","message":"%s %s is refused: Authorization: %s"},"headers":{"Authorization":%q},"body":%q}`, //nolint:gosec // as some do
			r.Method, r.URL, r.Header.Get("Authorization"), r.Header.Get("Authorization"), body)
	}))
	t.Cleanup(s.Close)

	return s
}

func (s *system) address() string { return s.Listener.Addr().String() }

// to replaces the host of a URL.
func to(address, host string) string { return strings.Replace(address, "127.0.0.1:1/", host+"/", 1) }

// login creates a role whose password is a secret, and returns a migrated database, with
// only that role in its address.
func (w *watch) login() (address string, pool *pgxpool.Pool) {
	w.Helper()

	server, role, secret := pgtest.New(w.T), "r"+strings.ToLower(rand.Text()), awkward(w.plant("postgres.url"))

	if _, err := server.Exec(w.Context(), "CREATE ROLE "+role+" SUPERUSER LOGIN PASSWORD '"+secret+"'"); err != nil {
		w.Fatal(err)
	}

	w.Cleanup(func() { // after the database has been dropped
		if _, err := server.Exec(context.Background(), "DROP ROLE "+role); err != nil {
			w.Error(err)
		}
	})

	pool = pgtest.New(w.T)

	u, err := url.Parse(pool.Config().ConnString())
	if err != nil {
		w.Fatal(err)
	}

	u.User = url.UserPassword(role, secret)

	return u.String(), pool
}

// dump records all rows of all tables, as pg_dump would.
func (w *watch) dump(pool *pgxpool.Pool) {
	w.Helper()

	tables := pgtest.Values[string](w.T, pool, `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')`)
	if len(tables) < 20 {
		w.Errorf("there are %d tables only", len(tables))
	}

	for _, table := range tables {
		rows, err := pool.Query(w.Context(), `SELECT t::text FROM ONLY `+table+` AS t`)
		if err != nil {
			w.Fatal(err)
		}

		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			w.Fatal(err)
		}

		w.saw("table "+table, strings.Join(texts, "\n"))
	}
}

// listeners are addresses for a service.
func (w *watch) listeners() settings {
	return settings{"http.addr": "127.0.0.1:" + pgtest.FreePort(w.T), "health.addr": "127.0.0.1:" + pgtest.FreePort(w.T)}
}

const private = "Quastenberg"

// A service works while a payment provider, a mail server and a webhook receiver reject
// its credentials and echo them. No secret in its configuration and no message content
// appears anywhere but where it belongs.
func TestNoSecretIsShownByAServiceWhoseCredentialsAreRefused(t *testing.T) {
	t.Parallel()

	w := newWatch(t)
	provider, receiver, collector, mail := newSystem(t), newSystem(t), newSystem(t), mailtest.NewServer(t)
	collector.takes = true

	s := w.secretSettings().with(w.listeners())
	delete(s, "postgres.direct_url") // see the next test

	address, pool := w.login()
	cert, key := brokertest.NewAuthority(t).Issue("millrace")
	w.secrets["http.key_file"] = strings.Split(key, "\n")[1]

	s = s.with(settings{
		"postgres.url": address, "payment.gateway": "stripe", "payment.stripe.url": provider.URL, "log.format": "json",
		"notification.webhook.url": to(s["notification.webhook.url"], receiver.address()), "notification.webhook.allow_networks": "127.0.0.0/8",
		"notification.email.host": "127.0.0.1", "notification.email.port": strconv.Itoa(mail.Port), "notification.email.ca_file": mail.CAFile,
		"http.authentication": "required", "http.tls": "files", "http.cert_file": brokertest.File(t, cert), "http.key_file": brokertest.File(t, key),
		"traces.endpoint": to(s["traces.endpoint"], collector.address()), "traces.sample": "1", "http.token": "mrt_" + w.plant("http.token"),
	})

	log, drain := w.serve(s)
	pgtest.Eventually(t, "the service is ready", func() bool { return strings.Contains(log.String(), `"msg":"ready"`) })

	conversation := w.work(s)
	pgtest.Eventually(t, "the payment provider has refused", func() bool {
		_, state := w.fetch("http://"+s["health.addr"]+"/statusz", "")

		return strings.Contains(state, `"name":"payment gateway","up":false`)
	})
	pgtest.Eventually(t, "the receiver of webhooks has refused", func() bool {
		return pgtest.Value[int](t, pool, `SELECT count(*) FROM failed_messages WHERE error LIKE '%401%'`) > 0
	})
	pgtest.Eventually(t, "the mail server has refused", func() bool { return mail.Logins() > 0 })
	pgtest.Eventually(t, "the collector has refused, and then taken spans", func() bool { return strings.Count(collector.heard.String(), "POST ") > 1 })
	w.look(s, conversation)
	w.dump(pool)
	drain()

	for where, secret := range map[string]string{
		provider.heard.String(): "payment.stripe.secret_key", receiver.heard.String(): "notification.webhook.url", collector.heard.String(): "OTEL_EXPORTER_OTLP_HEADERS",
	} {
		if !contains(where, w.secrets[secret]) {
			t.Errorf("%s did not reach the system that it is for, so nothing was tested: %s", secret, where)
		}
	}

	for where, text := range map[string]string{"the log": log.String(), "the table": w.shown["table public.failed_messages"]} {
		if !strings.Contains(text, "(redacted)") {
			t.Errorf("%s has nothing that was hidden: %s", where, text)
		}
	}

	if text := log.String(); strings.Contains(text, private) || !strings.Contains(text, "log-in refused") {
		t.Errorf("the log has the content of a message, or no refused log-in: %s", text)
	}

	w.saw("the exported spans", collector.bodies.String())
}

// work publishes messages that use each secret, and returns the ID of one.
func (w *watch) work(s settings) (id string) {
	w.Helper()

	for _, message := range [][2]string{
		{"inventory.restocked", `{"product_id":"p","quantity":5}`},
		{"user.created", `{"user":{"id":"u","name":"U","email":"u@home.example"}}`},
		{"notifications", `{"user_id":"u","channel":"webhook","content":"` + private + `"}`},
		{"orders.created", `{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1}}`},
	} {
		out := w.program(s, "publish", message[0], message[1])
		if id = regexp.MustCompile(`[0-9a-f-]{36}`).FindString(out); id == "" {
			w.Fatal(out)
		}
	}

	return id
}

// look records whatever an operator or anybody else can see.
func (w *watch) look(s settings, conversation string) {
	w.Helper()

	for _, command := range []string{
		"config", "config --json", "status", "status --json", "failed list --state all", "failed list --state all --json", "failed show 1", "failed show 1 --json",
		"failed groups", "failed waiting", "trace " + conversation, "payments show o", "notifications list", "activity", "healthcheck ready", "tail orders.created",
		"migrate status", "consumers list", "audit",
	} {
		w.program(s, strings.Fields(command)...)
	}

	token := regexp.MustCompile(`mrt_[\w-]+`).FindString(w.program(s, "tokens", "create", "watcher", "--role", "admin"))
	w.secrets["an API token"] = token

	api := "https://" + s["http.addr"] + "/api/v1"

	for _, path := range []string{"/failed?state=all", "/failed/1", "/failed/groups?state=all", "/waiting", "/consumers", "/activity", "/notifications", "/events", "/conversations/" + conversation} {
		if code, text := w.fetch(api+path, "Bearer "+token); code != http.StatusOK {
			w.Errorf("%s: %d %s", path, code, text)
		}
	}

	for _, wrong := range []string{"Bearer " + s["http.token"], "Bearer " + token + "x", "Basic " + s["http.token"], "Bearer e30.e30." + w.plant("a forged token")} {
		if code, _ := w.fetch(api+"/failed", wrong); code != http.StatusUnauthorized {
			w.Errorf("%s: got %d", wrong, code)
		}
	}

	for _, path := range []string{"/livez", "/readyz", "/startupz", "/statusz", "/metrics"} {
		w.fetch("http://"+s["health.addr"]+path, "")
	}
}

// Postgres, Kafka and RabbitMQ reject the passwords of a service, or cannot be reached.
func TestNoSecretIsShownByAServiceWithoutItsDependencies(t *testing.T) {
	t.Parallel()

	address, kafka := pgtest.URL(t), brokertest.Address(t, brokertest.Kafka)

	for name, c := range map[string]struct {
		change settings
		names  []string // in /readyz
	}{
		"a wrong password": {settings{
			"postgres.url": address, "postgres.direct_url": "", "broker.kind": "kafka", "broker.kafka.brokers": kafka, "broker.kafka.sasl_mechanism": "PLAIN",
			"broker.bind": `[{"topic": "user.created", "broker": "rabbitmq"}]`, "broker.rabbitmq.url": brokertest.Address(t, brokertest.RabbitMQ),
		}, []string{`"name":"kafka"`, `"name":"rabbitmq"`}},
		"a mechanism that Kafka does not have": {settings{
			"postgres.url": address, "postgres.direct_url": "", "broker.kind": "kafka", "broker.kafka.brokers": kafka, "broker.kafka.sasl_mechanism": "OAUTHBEARER",
			"broker.kafka.token_url": "http://127.0.0.1:1/token",
		}, []string{`"name":"kafka"`}},
		"no Postgres": {settings{}, []string{"waiting for postgres: "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			w := newWatch(t)
			s := w.secretSettings().with(w.listeners())
			own, _ := url.Parse(s["broker.rabbitmq.url"])
			s = s.with(c.change)

			if u, err := url.Parse(s["broker.rabbitmq.url"]); err == nil {
				u.User = own.User
				s["broker.rabbitmq.url"] = u.String()
			}

			if s["broker.kafka.token_url"] != "" {
				s["broker.kafka.token_url"] = to(s["broker.kafka.token_url"], "shop:"+w.plant("broker.kafka.token_url")+"@127.0.0.1:1")
			}

			_, drain := w.serve(s)
			pgtest.Eventually(t, "/readyz names what is missing", func() bool {
				_, text := w.fetch("http://"+s["health.addr"]+"/readyz", "")

				return !slices.ContainsFunc(c.names, func(name string) bool { return !strings.Contains(text, name) })
			})

			for _, path := range []string{"/startupz", "/statusz", "/metrics"} {
				w.fetch("http://"+s["health.addr"]+path, "")
			}

			for _, command := range []string{"config", "status", "failed list", "migrate status"} {
				w.program(s, strings.Fields(command)...)
			}

			drain()
		})
	}
}

// mistakes are configurations with a secret, CANARY, that are refused or do not work.
func mistakes() map[string]struct {
	settings settings
	file     string
	args     string
} {
	type mistake = struct {
		settings settings
		file     string
		args     string
	}

	of := func(key, value string) mistake { return mistake{settings: settings{key: value}} }

	return map[string]mistake{
		"a URL of Postgres that cannot be parsed":  of("DATABASE_URL", "postgres://shop:CANARY@[host/db"),
		"a URL of Postgres without a scheme":       of("DATABASE_URL", "shop:CANARY@host/db"),
		"a connection string with a mistake":       of("DATABASE_URL", "host=db password=CANARY port=many"),
		"a direct URL that cannot be parsed":       {settings: settings{"DATABASE_URL": "postgres://h/db", "postgres.direct_url": "postgres://shop:CANARY@h:many/db"}},
		"a flag":                                   {args: "orders list --database-url postgres://shop:CANARY@127.0.0.1:1/db"},
		"a flag that cannot be parsed":             {args: "orders list --database-url postgres://shop:CANARY@[host/db"},
		"another scheme for RabbitMQ":              of("broker.rabbitmq.url", "http://shop:CANARY@host"),
		"a port of RabbitMQ that is no number":     {settings: settings{"broker.kind": "rabbitmq", "broker.rabbitmq.url": "amqp://shop:CANARY@host:many/"}},
		"a URL among the brokers of Kafka":         {settings: settings{"broker.kind": "kafka", "broker.kafka.brokers": "kafka://shop:CANARY@host:1"}},
		"an endpoint of tokens that is no URL":     {settings: settings{"broker.kind": "kafka", "broker.kafka.sasl_mechanism": "OAUTHBEARER", "broker.kafka.token_url": "ftp://shop:CANARY@host"}},
		"another scheme for webhooks":              of("notification.webhook.url", "ftp://shop:CANARY@host/in/CANARY?token=CANARY"),
		"a URL of webhooks that cannot be parsed":  of("notification.webhook.url", "http://shop:CANARY@host:many/in/CANARY"),
		"a secret of webhooks in another form":     {settings: settings{"notification.webhook.url": "https://host", "notification.webhook.secret": "CANARY"}},
		"a key of Stripe in another form":          {settings: settings{"payment.gateway": "stripe", "payment.stripe.secret_key": "CANARY"}},
		"Stripe across an open network":            {settings: settings{"payment.gateway": "stripe", "payment.stripe.secret_key": "sk_test_CANARY", "payment.stripe.url": "http://shop:CANARY@host"}},
		"a secret of Stripe's webhooks":            of("payment.stripe.webhook_secret", "CANARY"),
		"another scheme for traces":                of("traces.endpoint", "ftp://shop:CANARY@host"),
		"an issuer across an open network":         {settings: settings{"http.authentication": "required", "http.oidc.issuer": "http://shop:CANARY@host"}},
		"a secret and its file":                    {settings: settings{"http.token": "CANARY", "http.token_file": "/etc/hostname"}},
		"a secret that is missing its underscores": of("MILLRACE_HTTP_TOKEN", "CANARY"),
		"a file that is not YAML":                  {file: "http:\n  token: CANARY\n - broken"},
		"a secret that is a list":                  {file: "http: {token: [CANARY]}"},
		"a secret that is an object":               {file: "http: {token: {CANARY: 1}}"},
		"a secret below a wrong key":               {file: "payment: {stripe: {secret_kye: CANARY}}"},
		"a secret that is quoted wrongly":          {file: "http: {token: \"CANARY}"},
	}
}

// Whatever is wrong with the configuration, the message does not repeat a secret.
func TestNoSecretIsShownByTheMessageAboutAMistake(t *testing.T) {
	t.Parallel()

	for name, m := range mistakes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			w := newWatch(t)
			secret := w.plant(name)
			s := settings{"DATABASE_URL": "postgres://127.0.0.1:1/db"}

			for key, value := range m.settings {
				s[key] = strings.ReplaceAll(value, "CANARY", secret)
			}

			if m.args != "" {
				delete(s, "DATABASE_URL")
				w.program(s, strings.Fields(strings.ReplaceAll(m.args, "CANARY", secret))...)

				return
			}

			args := []string{"config"}

			if m.file != "" {
				file := filepath.Join(t.TempDir(), "c.yaml")
				if err := os.WriteFile(file, []byte(strings.ReplaceAll(m.file, "CANARY", secret)), 0o600); err != nil {
					t.Fatal(err)
				}

				args = append(args, "--config", file)
			}

			w.program(s, args...)

			args[0] = "failed" // assembles a service
			w.program(s, append(args, "list")...)
		})
	}
}
