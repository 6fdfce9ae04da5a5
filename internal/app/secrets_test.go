package app_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/telemetry"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// shipped is a payload whose handler panics.
type shipped struct {
	OrderID string `json:"order_id"`
}

func (shipped) Topic() string     { return "orders.shipped" }
func (s shipped) Key() string     { return s.OrderID }
func (s shipped) Validate() error { return event.CheckID("order_id", s.OrderID) }

// carrier returns an error to panic with. It contains secrets, as a request to another
// system does.
func carrier(t *testing.T) error {
	t.Helper()

	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://shop:hunter2@carrier.example/labels?key=hunter2", nil)
	request.Header.Set("Authorization", "Bearer hunter2hunter2")

	return fmt.Errorf("no answer from %s to %v", request.URL.String(), request.Header)
}

// panicked returns a listener's response when its handler panics.
func panicked(t *testing.T, s *apptest.Service, logger *slog.Logger) string {
	t.Helper()

	cfg := httpapi.DefaultConfig()
	cfg.Addr = "127.0.0.1:0"

	server, err := httpapi.NewServer(cfg, httpapi.HealthConfig{Addr: "127.0.0.1:0"}, s.Pool, logger, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}

	server.Explain(httpapi.State{Status: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(carrier(t)) })})

	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = server.Close(context.Background()) })

	response, err := http.Get("http://" + server.HealthAddr() + "/statusz") //nolint:noctx // a local server
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()

	body, _ := io.ReadAll(response.Body)

	return string(body)
}

// A handler that panics with a secret reveals it neither in the log nor in the stored
// failed message. Other places where secrets could appear are tested in cmd/millrace.
func TestAPanicShowsNoSecret(t *testing.T) {
	t.Parallel()

	log := &pgtest.Log{}
	logger := telemetry.NewLogger(telemetry.Config{Level: "debug", Format: "json"}, log)

	s := apptest.NewWithLog(t, pgtest.URL(t), logger)
	s.ExpectFailures()
	consumer.On(s.Router, "carrier.ship", func(context.Context, pgx.Tx, event.Event[shipped]) ([]event.Outgoing, error) { panic(carrier(t)) })
	s.Run()
	s.Publish("orders.shipped", `{"order_id":"o"}`)
	pgtest.Eventually(t, "the message has failed", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM failed_messages`) == 1 })

	answer := panicked(t, s, logger)
	// The message is stored before its failure is logged.
	pgtest.Eventually(t, "both panics are logged", func() bool { return strings.Count(log.String(), "(redacted)") >= 4 })

	texts := map[string]string{
		"the answer": answer, "the log": log.String(),
		"the failed message": apptest.Value[string](s, `SELECT f::text FROM failed_messages AS f`),
	}
	for _, path := range []string{"/statusz", "/readyz", "/api/v1/failed/1", "/api/v1/failed/groups?state=all", "/api/v1/waiting"} {
		_, texts[path] = page(t, s, path)
	}

	for where, text := range texts {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s shows a secret: %s", where, text)
		}
	}

	if text := texts["the log"]; strings.Count(text, "(redacted)") < 4 || !strings.Contains(text, "request panicked") || !strings.Contains(texts["the failed message"], "(redacted)") {
		t.Errorf("nothing was hidden in the log %s or the message %s", text, texts["the failed message"])
	}
}
