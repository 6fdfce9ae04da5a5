package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/httpapi"
)

func TestReadyzReportsWhatIsMissing(t *testing.T) {
	t.Parallel()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}

	server := httpapi.NewServer(httpapi.Config{Addr: addr}, prometheus.NewRegistry())

	broken := errors.New("cannot be reached")
	if err := server.Listen(httpapi.Check{Name: "postgres", Ping: func(context.Context) error { return broken }}); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = server.Close(context.Background()) })

	ask := func(path string) (int, map[string]string) {
		t.Helper()

		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}

		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()

		var body struct {
			Checks map[string]string `json:"checks"`
		}

		_ = json.NewDecoder(response.Body).Decode(&body) // metrics are not JSON

		return response.StatusCode, body.Checks
	}

	if status, checks := ask("/readyz"); status != 503 || checks["service"] != "starting or stopping" || checks["postgres"] != "cannot be reached" {
		t.Errorf("got %d, %v", status, checks)
	}

	broken = nil

	server.SetReady(true)

	for _, path := range []string{"/readyz", "/livez", "/metrics"} {
		if status, _ := ask(path); status != 200 {
			t.Errorf("%s: got %d", path, status)
		}
	}
}
