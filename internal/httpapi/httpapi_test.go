package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// readiness is the body of /readyz.
type readiness struct {
	Status   string
	Troubles []health.Trouble
}

// serve starts a server on free ports.
func serve(t *testing.T, cfg httpapi.Config, healthCfg httpapi.HealthConfig, state httpapi.State) *httpapi.Server {
	t.Helper()

	ok := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, r.Pattern) }) //nolint:gosec // the pattern is ours
	if state.Status == nil {
		state.Status = ok
	}

	server, err := httpapi.NewServer(cfg, healthCfg, nil, pgtest.Logger(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}

	server.Explain(state)
	server.Handle("GET /operators", access.Viewer, ok)
	server.HandlePublic("POST /hook", ok)

	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = server.Close(context.Background()) })

	return server
}

// send sends a request, and returns an empty body unless it is JSON.
func send(t *testing.T, method, url, host string) (code int, body readiness) {
	t.Helper()

	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}

	request.Host = host

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()

	_ = json.NewDecoder(response.Body).Decode(&body)

	return response.StatusCode, body
}

func TestReadyzAnswersByTheWorstTroubleAndLivezByNone(t *testing.T) {
	t.Parallel()

	var troubles []health.Trouble

	server := serve(t, httpapi.Config{Addr: "127.0.0.1:0"}, httpapi.HealthConfig{Addr: "127.0.0.1:0"},
		httpapi.State{Health: func() []health.Trouble { return troubles }})
	url := "http://" + server.HealthAddr()

	trouble := func(level health.Level) health.Trouble {
		return health.Trouble{Kind: health.Broker, Name: "kafka", Level: level, Reason: "not connected", Remedy: "start it"}
	}

	for _, c := range []struct {
		troubles []health.Trouble
		code     int
		status   string
	}{
		{nil, 200, "ok"},
		{[]health.Trouble{trouble(health.Note)}, 200, "ok"},
		{[]health.Trouble{trouble(health.Note), trouble(health.Degraded)}, 200, "degraded"},
		{[]health.Trouble{trouble(health.Degraded), trouble(health.Unready)}, 503, "unavailable"},
	} {
		troubles = c.troubles

		code, body := send(t, "GET", url+"/readyz", "")
		if code != c.code || body.Status != c.status || len(body.Troubles) != len(c.troubles) {
			t.Errorf("%+v: got %d %+v, expected %d %s", c.troubles, code, body, c.code, c.status)
		}

		for _, path := range []string{"/livez", "/metrics"} {
			if code, _ := send(t, "GET", url+path, ""); code != 200 {
				t.Errorf("%+v: %s: got %d", c.troubles, path, code)
			}
		}
	}
}

func TestStartupzAnswersByTheEndOfTheStart(t *testing.T) {
	t.Parallel()

	started := false
	server := serve(t, httpapi.Config{Addr: "127.0.0.1:0"}, httpapi.HealthConfig{Addr: "127.0.0.1:0"}, httpapi.State{
		Started: func() bool { return started },
		Health:  func() []health.Trouble { return []health.Trouble{{Reason: "waiting for postgres"}} },
	})

	if code, body := send(t, "GET", "http://"+server.HealthAddr()+"/startupz", ""); code != 503 || body.Status != "starting" || len(body.Troubles) != 1 {
		t.Errorf("before: got %d %+v", code, body)
	}

	started = true

	if code, body := send(t, "GET", "http://"+server.HealthAddr()+"/startupz", ""); code != 200 || body.Status != "ok" {
		t.Errorf("after: got %d %+v", code, body)
	}
}

// Each path is served only on the address meant for it.
func TestEachAddressServesOnlyWhatItIsFor(t *testing.T) {
	t.Parallel()

	state := httpapi.State{Health: func() []health.Trouble { return nil }, Started: func() bool { return true }}
	health := []string{"GET /livez", "GET /readyz", "GET /startupz", "GET /metrics", "GET /statusz"}

	for name, c := range map[string]struct {
		webhooks string
		want     map[string][]string
	}{
		"webhooks with the API": {"", map[string][]string{"health": health, "operators": {"GET /operators", "POST /hook"}}},
		"webhooks of their own": {"127.0.0.1:0", map[string][]string{"health": health, "operators": {"GET /operators"}, "webhooks": {"POST /hook"}}},
	} {
		server := serve(t, httpapi.Config{Addr: "127.0.0.1:0", WebhooksAddr: c.webhooks}, httpapi.HealthConfig{Addr: "127.0.0.1:0"}, state)
		addresses := map[string]string{"health": server.HealthAddr(), "operators": server.Addr(), "webhooks": server.WebhooksAddr()}

		for listener, served := range c.want {
			for _, request := range append(health, "GET /operators", "POST /hook") {
				method, path, _ := strings.Cut(request, " ")
				code, _ := send(t, method, "http://"+addresses[listener]+path, "")

				if want := strings.Contains(strings.Join(served, " "), request); want != (code == http.StatusOK) || !want && code != http.StatusNotFound {
					t.Errorf("%s: %s at %s: got %d", name, request, listener, code)
				}
			}
		}
	}
}

// On loopback, a page in a browser could send requests to a name that resolves to this
// host. From elsewhere, probes and Prometheus use whatever name or address they know.
func TestProbesCheckTheHostOnLoopbackOnly(t *testing.T) {
	t.Parallel()

	state := httpapi.State{Health: func() []health.Trouble { return nil }, Started: func() bool { return true }}

	for addr, want := range map[string]int{"127.0.0.1:0": 403, "0.0.0.0:0": 200} {
		server := serve(t, httpapi.Config{Addr: "127.0.0.1:0"}, httpapi.HealthConfig{Addr: addr}, state)
		_, port, _ := strings.Cut(server.HealthAddr(), "]:")
		if port == "" {
			_, port, _ = strings.Cut(server.HealthAddr(), ":")
		}

		for _, path := range []string{"/livez", "/readyz", "/startupz", "/metrics", "/statusz"} {
			if code, _ := send(t, "GET", "http://127.0.0.1:"+port+path, "millrace.example"); code != want {
				t.Errorf("%s%s: got %d, expected %d", addr, path, code, want)
			}
		}
	}
}

// A webhook or a probe that panics still gets a response, so its caller tries again.
func TestAPanicOutsideTheAPIIsAProblem(t *testing.T) {
	t.Parallel()

	broken := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("no status") })
	server := serve(t, httpapi.Config{Addr: "127.0.0.1:0"}, httpapi.HealthConfig{Addr: "127.0.0.1:0"}, httpapi.State{Status: broken})

	if code, _ := send(t, "GET", "http://"+server.HealthAddr()+"/statusz", ""); code != http.StatusInternalServerError {
		t.Errorf("got %d", code)
	}
}
