// Package httpapi serves health, metrics and the HTTP API for operators.
package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// Config configures the listener.
type Config struct {
	// Addr is a host:port on loopback, because the listener has no authentication.
	// Defaults to 127.0.0.1:9464.
	Addr string `koanf:"addr"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Addr: "127.0.0.1:9464"} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return fmt.Errorf("http.addr: is %q, expected host:port, for example 127.0.0.1:9464", c.Addr)
	}

	if !check.Loopback(host) {
		return fmt.Errorf("http.addr: is %q, expected a loopback address: the listener has no authentication", c.Addr)
	}

	return nil
}

// Server serves /livez, /readyz and /metrics.
type Server struct {
	cfg Config
	// troubles returns what is not as it should be.
	troubles func() []health.Trouble
	// mux serves operators, public everything.
	mux, public *http.ServeMux
	server      *http.Server
	addr        atomic.Value
}

// NewServer returns a server. Call Listen to start it.
func NewServer(cfg Config, registry *prometheus.Registry) *Server {
	mux, public := http.NewServeMux(), http.NewServeMux()
	public.Handle("/", guard(mux))

	s := &Server{cfg: cfg, mux: mux, public: public, troubles: func() []health.Trouble { return nil }}
	// The process lives as long as it can answer: what it depends on does not matter,
	// because a restart would not help.
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, report{Status: statusOK}) })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	s.server = &http.Server{
		Handler:           public,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
	}

	return s
}

// Explain sets the function that returns what /readyz reports. It must not wait for
// anything. Call it before Listen.
func (s *Server) Explain(troubles func() []health.Trouble) { s.troubles = troubles }

// Handle serves pattern with handler to operators on this machine. Call it before
// Listen.
func (s *Server) Handle(pattern string, handler http.Handler) { s.mux.Handle(pattern, handler) }

// HandlePublic serves pattern with a handler that authenticates its requests itself: a
// proxy forwards them under its own host. Call it before Listen.
func (s *Server) HandlePublic(pattern string, handler http.Handler) {
	s.public.Handle(pattern, handler)
}

// Listen binds the address and serves in the background until Close.
func (s *Server) Listen() error {
	listener, err := net.Listen("tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("listening on http.addr %s: %w (set http.addr to a free port)", s.cfg.Addr, err)
	}

	s.addr.Store(listener.Addr().String())

	go func() { _ = s.server.Serve(listener) }()

	return nil
}

// Addr returns the address that the server listens on, or "" before Listen. Its port
// differs from the configured one if that is 0.
func (s *Server) Addr() string {
	addr, _ := s.addr.Load().(string)

	return addr
}

// Close waits for requests in progress until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	if err := s.server.Shutdown(ctx); err != nil {
		return fmt.Errorf("closing http listener: %w", err)
	}

	return nil
}

// report is the response of /livez and /readyz.
type report struct {
	Status   string           `json:"status"`
	Troubles []health.Trouble `json:"troubles,omitempty"`
}

// Values of report.Status.
const (
	statusOK          = "ok"
	statusDegraded    = "degraded"
	statusUnavailable = "unavailable"
)

// readyz answers from what the process knows and asks nobody: a probe must not hang
// because a dependency does.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	answer, code := report{Status: statusOK, Troubles: s.troubles()}, http.StatusOK

	switch health.Worst(answer.Troubles) { //nolint:exhaustive // notes change nothing
	case health.Unready:
		answer.Status, code = statusUnavailable, http.StatusServiceUnavailable
	case health.Degraded:
		answer.Status = statusDegraded
	}

	reply(w, code, answer)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)

	_ = json.NewEncoder(terminal.NewWriter(w)).Encode(body) // fails only if the client is gone
}
