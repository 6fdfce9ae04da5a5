package httpapi_test

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/httpapi"
)

// readiness is the body of /readyz.
type readiness struct {
	Status   string
	Troubles []health.Trouble
}

// probe asks a server, and returns an empty body unless it is JSON.
func probe(t *testing.T, server *httpapi.Server, path string) (code int, body readiness) {
	t.Helper()

	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+server.Addr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}

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

	server := httpapi.NewServer(httpapi.Config{Addr: "127.0.0.1:0"}, prometheus.NewRegistry())
	server.Explain(func() []health.Trouble { return troubles })

	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = server.Close(context.Background()) })

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

		code, body := probe(t, server, "/readyz")
		if code != c.code || body.Status != c.status || len(body.Troubles) != len(c.troubles) {
			t.Errorf("%+v: got %d %+v, expected %d %s", c.troubles, code, body, c.code, c.status)
		}

		for _, path := range []string{"/livez", "/metrics"} {
			if code, _ := probe(t, server, path); code != 200 {
				t.Errorf("%+v: %s: got %d", c.troubles, path, code)
			}
		}
	}
}
