package app_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/telemetry"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// echo answers 401 and repeats everything that it received, as providers do.
func echo(t *testing.T) *httptest.Server {
	t.Helper()

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)

		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintf(w, `{"error":{"type":"invalid_request_error","message":"%s %s is refused: Authorization: %s"},"headers":{"Authorization":%q},"body":%q}`, //nolint:gosec // as providers do
			r.Method, r.URL, r.Header.Get("Authorization"), r.Header.Get("Authorization"), body)
	}))
	t.Cleanup(server.Close)

	return server
}

// No secret of the configuration and no content of a message reaches the log, the state
// of a dependency, a failed message or the API, even if another system repeats it.
func TestNoSecretIsKeptOrShown(t *testing.T) {
	t.Parallel()

	receiver, provider, log := echo(t), echo(t), &logBuffer{}
	hook := strings.Replace(receiver.URL, "http://", "http://shop:hunter2pass@", 1) + "/in?token=hunter2token"

	s := apptest.NewWithLog(t, pgtest.URL(t), telemetry.NewLogger(telemetry.Config{Level: "debug", Format: "json"}, log), func(c *config.Config) {
		c.Notification.Webhook.URL, c.Notification.Webhook.AllowNetworks = scrub.URL(hook), []string{"127.0.0.0/8"}
		c.Notification.Webhook.Secret = postgres.Secret("whsec_" + base64.StdEncoding.EncodeToString([]byte("hunter2hunter2hunter2hunter2")))
		c.Payment.Gateway, c.Payment.Stripe.SecretKey, c.Payment.Stripe.URL = "stripe", "sk_test_hunter2key", provider.URL
	})
	s.ExpectFailures()
	s.Run()
	s.Seed()

	s.Publish("notifications", `{"user_id":"u1","channel":"webhook","content":"Ädelheid \"Quastenberg\""}`)
	s.Publish("orders.created", `{"order":{"id":"o1","product_id":"product_1","quantity":1,"total_amount":1}}`)
	pgtest.Eventually(t, "the webhook has failed, and the provider is unavailable", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE error LIKE '%401%'`) == 1 && !s.Dependencies.Get("payment gateway").State().Up
	})

	texts := map[string]string{
		"the log":             log.String(),
		"the failed messages": apptest.Value[string](s, `SELECT string_agg(error || cause, ' ') FROM failed_messages`),
	}

	for _, path := range []string{"/statusz", "/readyz", "/api/v1/failed?limit=100", "/api/v1/failed/groups", "/api/v1/waiting", "/api/v1/consumers"} {
		_, texts[path] = page(t, s, path)
	}

	for _, where := range []string{"the failed messages", "/statusz"} {
		if !strings.Contains(texts[where], "(redacted)") {
			t.Errorf("%s has nothing that was scrubbed: %s", where, texts[where])
		}
	}

	for where, text := range texts {
		for _, secret := range []string{
			"hunter2", base64.StdEncoding.EncodeToString([]byte("shop:hunter2pass")), base64.StdEncoding.EncodeToString([]byte("hunter2hunter2hunter2hunter2")),
			"Ädelheid", "Quastenberg",
		} {
			if strings.Contains(text, secret) {
				t.Errorf("%s contains %s: %s", where, secret, text)
			}
		}
	}
}
