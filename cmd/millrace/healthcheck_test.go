package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// This test sets the environment, so it cannot run in parallel.
func TestHealthcheckExitsByTheAnswerOfTheService(t *testing.T) {
	url := pgtest.URL(t)
	s := apptest.Start(t)

	t.Setenv("MILLRACE_HEALTH__ADDR", s.HealthAddr())

	for _, probe := range []string{"live", "ready", "started"} {
		expect(t, url, "healthcheck "+probe, 0, "ok")
	}

	expect(t, url, "healthcheck alive", exitUsage, "unknown probe alive, expected live, ready or started")
	expect(t, url, "healthcheck ready --json", 0, `"status": "ok"`)

	s.Stop()
	expect(t, url, "healthcheck live", exitFailure, "no service is responding at health.addr")
}

func TestHealthcheckFailsWhenTheServiceSaysNoOrIsSilentOrIsAnother(t *testing.T) {
	url := pgtest.URL(t)

	unready := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"status":"unavailable","troubles":[{"name":"postgres","level":"unready","reason":"connection refused","remedy":"start it"}]}`))
	}))
	t.Cleanup(unready.Close)

	another := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(another.Close)

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = silent.Close() })

	for _, c := range []struct{ addr, says string }{
		{unready.Listener.Addr().String(), "postgres: connection refused"},
		{another.Listener.Addr().String(), "unexpected response from the program at health.addr"},
		{silent.Addr().String(), "no service is responding at health.addr"},
	} {
		t.Setenv("MILLRACE_HEALTH__ADDR", c.addr)

		start := time.Now()

		expect(t, url, "healthcheck ready --timeout 1s", exitFailure, c.says)

		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: took %s", c.addr, took)
		}
	}
}
