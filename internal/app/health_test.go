package app_test

import (
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// fetch sends a request to whichever of the service's listeners serves the path.
func fetch(t *testing.T, s *apptest.Service, method, path, body string, headers http.Header) (code int, answer string) {
	t.Helper()

	addr := s.HTTPAddr()
	if slices.Contains([]string{"/livez", "/readyz", "/startupz", "/metrics", "/statusz"}, path) {
		addr = s.HealthAddr()
	}

	request, err := http.NewRequestWithContext(context.Background(), method, "http://"+addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}

	maps.Copy(request.Header, headers)

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()

	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}

	return response.StatusCode, string(text)
}

// page requests a page of the service.
func page(t *testing.T, s *apptest.Service, path string) (code int, body string) {
	t.Helper()

	return fetch(t, s, http.MethodGet, path, "", nil)
}

// expected describes how one trouble is reported.
type expected struct {
	name    string
	code    int
	level   health.Level
	reason  string
	remedy  string
	because string
}

// reported waits until /readyz and the metrics report what is expected, while the
// process stays alive.
func reported(t *testing.T, s *apptest.Service, want expected) {
	t.Helper()
	pgtest.Eventually(t, "/readyz names "+want.name, func() bool {
		code, troubles := readiness(t, s)
		got := troubles[want.name]

		return code == want.code && got.Level == want.level && strings.Contains(got.Reason, want.reason) &&
			strings.Contains(got.Remedy, want.remedy) && got.Because == want.because
	})

	metric := `name="` + want.name + `"} 1`
	if _, metrics := page(t, s, "/metrics"); !strings.Contains(metrics, metric) {
		t.Errorf("the metrics do not have millrace_trouble with %s", metric)
	}

	if code, _ := page(t, s, "/livez"); code != http.StatusOK {
		t.Errorf("/livez: got %d, although a restart would not help", code)
	}
}

// recovered waits until only notes are reported.
func recovered(t *testing.T, s *apptest.Service) {
	t.Helper()
	pgtest.Eventually(t, "nothing is in trouble", func() bool {
		code, body := page(t, s, "/readyz")

		return code == http.StatusOK && strings.Contains(body, `"status":"ok"`)
	})
}

func TestAPausedConsumerLeavesTheServiceReadyAndIsNamed(t *testing.T) {
	t.Parallel()

	by := activity.Actor{Who: "ann", Why: "fixing the import"}

	s := apptest.Start(t)
	recovered(t, s)

	if _, err := s.Router.Pause(t.Context(), "account.create", 0, by); err != nil {
		t.Fatal(err)
	}

	reported(t, s, expected{"account.create", 200, health.Degraded, "paused by an operator", "millrace consumers resume account.create", ""})

	if _, err := s.Router.Resume(t.Context(), "account.create", by); err != nil {
		t.Fatal(err)
	}

	recovered(t, s)
}

func TestAProjectionThatFailsLeavesTheServiceReadyAndIsNamed(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	recovered(t, s)
	alter(t, s, `ALTER TABLE users RENAME TO elsewhere`)
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)
	reported(t, s, expected{"projections", 200, health.Degraded, `relation "users" does not exist`, "millrace migrate up", ""})
	alter(t, s, `ALTER TABLE elsewhere RENAME TO users`)
	recovered(t, s)
}

func TestExpiryThatFailsLeavesTheServiceReadyAndIsNamed(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	recovered(t, s)
	alter(t, s, `ALTER TABLE expiry_cursor RENAME TO elsewhere`)
	reported(t, s, expected{"expiry of unpaid orders", 200, health.Degraded, "expiry_cursor", "millrace migrate up", ""})
	alter(t, s, `ALTER TABLE elsewhere RENAME TO expiry_cursor`)
	recovered(t, s)
}

func TestAStoppedMessageLeavesTheServiceReadyAndIsNamed(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	recovered(t, s)
	s.ExpectFailures()
	s.PublishMessage(event.Message{Topic: "orders.created", Payload: []byte("nonsense")})
	reported(t, s, expected{"stopped messages", 200, health.Degraded, "1 message is stopped", "millrace failed groups", ""})
	alter(t, s, `DELETE FROM failed_messages`)
	recovered(t, s)
}

func alter(t *testing.T, s *apptest.Service, sql string) {
	t.Helper()

	if _, err := s.Pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutPostgresTheServiceIsNotReadyAndNamesEveryConsumer(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	recovered(t, s)
	allow := cutOff(t, s)

	reported(t, s, expected{"postgres", 503, health.Unready, "unavailable: ", "postgres", ""})
	reported(t, s, expected{"relay", 503, health.Unready, "is making no progress: ", "postgres", ""})

	for _, c := range s.Router.States() {
		reported(t, s, expected{c.Consumer, 503, health.Unready, "waiting for postgres", "see the dependency", "postgres"})
	}

	allow()
	recovered(t, s)
}

// A service whose broker has never answered consumes nothing, and says so everywhere.
func TestWithoutItsBrokerTheServiceIsNotReadyAndConsumersAreNotRunning(t *testing.T) {
	t.Parallel()

	for _, kind := range []string{broker.Kafka, broker.RabbitMQ} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()

			nowhere := "127.0.0.1:" + pgtest.FreePort(t)
			s := apptest.New(t, pgtest.URL(t), func(c *config.Config) {
				c.Broker.Kind = kind
				c.Broker.Kafka.Brokers = []string{nowhere}
				c.Broker.RabbitMQ.URL = "amqp://guest:guest@" + "127.0.0.1:1/"
			})

			if _, err := s.Router.Pause(t.Context(), "account.create", 0, activity.Actor{Who: "ann", Why: "fixing the import"}); err != nil {
				t.Fatal(err)
			}

			ctx, stop := context.WithCancel(context.Background())
			done := make(chan error, 1)

			go func() { done <- s.Service.Run(ctx, func() {}) }()

			t.Cleanup(func() {
				stop()

				if err := <-done; err != nil {
					t.Error(err)
				}
			})

			pgtest.Eventually(t, "the service listens", func() bool { return s.HTTPAddr() != "" })
			reported(t, s, expected{kind, 503, health.Unready, "not connected yet: reaching " + kind, "check that the broker is running and that broker." + kind, ""})
			reported(t, s, expected{"fulfilment.place", 503, health.Unready, "connecting: not receiving messages on orders.created", "see the broker", kind})

			for _, c := range s.Operator.Process().Consumers {
				if c.State != operate.Connecting || c.Since == nil || !strings.Contains(c.Why, "connection refused") {
					t.Errorf("%s is %s since %v: %s, expected connecting, since when and why", c.Consumer, c.State, c.Since, c.Why)
				}

				if paused := c.Pause != nil; paused != (c.Consumer == "account.create") {
					t.Errorf("%s: paused is %v", c.Consumer, paused)
				}
			}

			_, metrics := page(t, s, "/metrics")
			for _, metric := range []string{
				"millrace_ready 0", `millrace_broker_connected{broker="` + kind + `"} 0`,
				`millrace_consumer_running{consumer="fulfilment.place",topic="orders.created"} 0`,
			} {
				if !strings.Contains(metrics, metric) {
					t.Errorf("the metrics do not have %s", metric)
				}
			}
		})
	}
}
