// Package httpapi serves health, metrics and the HTTP API for operators.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/scrub"
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

// Check pings a dependency of the service.
type Check struct {
	Name string
	Ping func(ctx context.Context) error
}

// Server serves /livez, /readyz and /metrics.
type Server struct {
	cfg    Config
	ready  atomic.Bool
	checks []Check
	// troubles returns what is not working, and why, by name.
	troubles func() map[string]string
	// mux serves operators, public everything.
	mux, public *http.ServeMux
	server      *http.Server
	addr        atomic.Value
}

// NewServer returns a server. Call Listen to start it.
func NewServer(cfg Config, registry *prometheus.Registry) *Server {
	mux, public := http.NewServeMux(), http.NewServeMux()
	public.Handle("/", guard(mux))

	s := &Server{cfg: cfg, mux: mux, public: public, troubles: func() map[string]string { return nil }}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, health{Status: "ok"}) })
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

// Explain makes /readyz report what is not working even while the service is ready.
// Call it before Listen.
func (s *Server) Explain(troubles func() map[string]string) { s.troubles = troubles }

// Handle serves pattern with handler to operators on this machine. Call it before
// Listen.
func (s *Server) Handle(pattern string, handler http.Handler) { s.mux.Handle(pattern, handler) }

// HandlePublic serves pattern with a handler that authenticates its requests itself: a
// proxy forwards them under its own host. Call it before Listen.
func (s *Server) HandlePublic(pattern string, handler http.Handler) {
	s.public.Handle(pattern, handler)
}

// Listen binds the address and serves in the background until Close. /readyz runs
// checks.
func (s *Server) Listen(checks ...Check) error {
	s.checks = checks

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

// SetReady sets whether /readyz reports the service as ready.
func (s *Server) SetReady(ready bool) { s.ready.Store(ready) }

// Close waits for requests in progress until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	if err := s.server.Shutdown(ctx); err != nil {
		return fmt.Errorf("closing http listener: %w", err)
	}

	return nil
}

// health is the response of /livez and /readyz.
type health struct {
	Status string            `json:"status"`
	Checks map[string]string `json:"checks,omitempty"`
}

var errStarting = errors.New("starting or stopping")

// checkTimeout bounds one check.
const checkTimeout = 2 * time.Second

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	answer := health{Status: "ok", Checks: map[string]string{"service": "ok"}}

	if !s.ready.Load() {
		answer.fail("service", errStarting)
	}

	for _, check := range s.checks {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		err := check.Ping(ctx)

		cancel()

		answer.Checks[check.Name] = "ok"
		if err != nil {
			answer.fail(check.Name, err)
		}
	}

	for name, trouble := range s.troubles() {
		if answer.Status == "ok" {
			answer.Status = "degraded"
		}

		answer.Checks[name] = trouble
	}

	status := http.StatusOK
	if answer.Status == "unavailable" {
		status = http.StatusServiceUnavailable
	}

	reply(w, status, answer)
}

func (h *health) fail(name string, err error) {
	h.Status = "unavailable"
	h.Checks[name] = scrub.Text(err.Error())
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)

	_ = json.NewEncoder(w).Encode(body) // fails only if the client is gone
}
