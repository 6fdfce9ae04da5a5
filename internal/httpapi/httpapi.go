// Package httpapi serves the HTTP endpoints of the service: probes and metrics, the API
// for operators, and webhooks, each on its own address.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/time/rate"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// State is what the process knows about itself. Its functions must not wait for
// anything: a probe must not hang because a dependency does.
type State struct {
	// Health returns the current troubles.
	Health func() []health.Trouble
	// Started reports whether the service has finished starting.
	Started func() bool
	// Status serves the whole state, for commands.
	Status http.Handler
}

// Server serves the addresses of the service. Call its other methods before Listen.
type Server struct {
	cfg         Config
	certificate *certificate
	// health serves probes, operators serves whoever has authenticated, open anybody who
	// reaches the same address, and public serves webhooks.
	health, operators, open, public *http.ServeMux
	sessions                        *Sessions
	listeners                       []*listener
}

// NewServer returns a server. Call Listen to start it.
func NewServer(cfg Config, healthCfg HealthConfig, pool *pgxpool.Pool, logger *slog.Logger, registry *prometheus.Registry) (*Server, error) {
	logger = logger.With(slog.String("component", "httpapi"))

	auth, err := newAuthenticator(cfg, pool, newRefused(registry), logger)
	if err != nil {
		return nil, err
	}

	s := &Server{cfg: cfg, health: http.NewServeMux(), operators: http.NewServeMux(), open: http.NewServeMux(), public: http.NewServeMux(), sessions: &Sessions{auth}}

	if cfg.TLS == TLSFiles {
		s.certificate = newCertificate(cfg.CertFile, cfg.KeyFile, logger)
	}

	// The process is alive if it can answer. Its dependencies do not matter, because a
	// restart would not help.
	s.health.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, report{Status: statusOK}) })
	s.health.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	probes := http.Handler(s.health)
	if !exposed(healthCfg.Addr) {
		probes = local(probes)
	}

	s.listeners = []*listener{newListener("health.addr", healthCfg.Addr, probes, nil, logger)}
	webhooks, operators := s.public, s.guarded(auth)

	if cfg.WebhooksAddr == "" { // both on one address
		s.public.Handle("/", operators)
		operators = s.public
	}

	s.listeners = append(s.listeners, newListener("http.addr", cfg.Addr, operators, s.certificate, logger))

	if cfg.WebhooksAddr != "" {
		s.listeners = append(s.listeners, newListener("http.webhooks_addr", cfg.WebhooksAddr, webhooks, s.certificate, logger))
	}

	return s, nil
}

// guarded returns the handler of the operators' address.
func (s *Server) guarded(auth *authenticator) http.Handler {
	if auth == nil {
		s.open.Handle("/", anyone(s.operators))

		return local(s.open)
	}

	// A browser sends a session only to the host that began it, and a bearer token not on
	// its own, so checking the Host header would add nothing.
	s.open.Handle("/", auth.wrap(s.operators))

	return sameSite(s.open)
}

// newAuthenticator returns what authenticates requests to the operators' address, or nil
// if the configuration does not require that.
func newAuthenticator(cfg Config, pool *pgxpool.Pool, refused *prometheus.CounterVec, logger *slog.Logger) (*authenticator, error) {
	if cfg.Authentication != AuthenticationRequired {
		return nil, nil //nolint:nilnil // nobody is authenticated
	}

	verifier, err := access.NewVerifier(cfg.OIDC, pool, logger)
	if err != nil {
		return nil, err
	}

	a := &authenticator{
		verifier: verifier, proxied: cfg.TLS == TLSTerminated, refused: refused, logger: logger,
		failures: &failures{callers: map[netip.Addr]*rate.Limiter{}},
	}

	if cfg.Console {
		a.allowSessions(cfg.TLS != TLSNone)
	}

	return a, nil
}

// Explain makes the probes and /statusz answer from state.
func (s *Server) Explain(state State) {
	s.health.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { readyz(w, state.Health()) })
	s.health.HandleFunc("GET /startupz", func(w http.ResponseWriter, _ *http.Request) { startupz(w, state) })
	s.health.Handle("GET /statusz", state.Status)
}

// Handle serves pattern with handler to callers whose role includes the given one.
func (s *Server) Handle(pattern string, role access.Role, handler http.Handler) {
	s.operators.Handle(pattern, needs(role, handler))
}

// HandleOpen is Handle for anybody who reaches the address: for the login form, and what
// it is made of.
func (s *Server) HandleOpen(pattern string, handler http.Handler) {
	s.open.Handle(pattern, handler)
}

// Console reports whether the console is to be served.
func (s *Server) Console() bool { return s.cfg.Console }

// Sessions returns the sessions of browsers.
func (s *Server) Sessions() *Sessions { return s.sessions }

// OnClose calls fn when Close begins: responses without an end must end then.
func (s *Server) OnClose(fn func()) {
	for _, l := range s.listeners {
		l.server.RegisterOnShutdown(fn)
	}
}

// HandlePublic serves pattern with a handler that authenticates requests itself. It
// allows any Host header, because a proxy forwards requests under its own host.
func (s *Server) HandlePublic(pattern string, handler http.Handler) {
	s.public.Handle(pattern, handler)
}

// Listen binds the addresses and serves in the background until Close.
func (s *Server) Listen() error {
	if s.certificate != nil {
		if _, err := s.certificate.get(nil); err != nil {
			return err
		}
	}

	for i, l := range s.listeners {
		if err := l.listen(); err != nil {
			for _, open := range s.listeners[:i] {
				_ = open.server.Close()
			}

			return err
		}
	}

	return nil
}

// HealthAddr returns the address for probes and metrics, or "" before Listen. Its port
// differs from the configured port if the latter is 0.
func (s *Server) HealthAddr() string { return s.listeners[0].address() }

// Addr is like HealthAddr, for the API.
func (s *Server) Addr() string { return s.listeners[1].address() }

// WebhooksAddr is like HealthAddr, for webhooks. It is Addr if they have no address of
// their own.
func (s *Server) WebhooksAddr() string { return s.listeners[len(s.listeners)-1].address() }

// Close waits for requests in progress until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.close(ctx))
	}

	return errors.Join(errs...)
}

// report is the response of probes.
type report struct {
	Status   string           `json:"status"`
	Troubles []health.Trouble `json:"troubles,omitempty"`
}

// Values of report.Status.
const (
	statusOK          = "ok"
	statusDegraded    = "degraded"
	statusStarting    = "starting"
	statusUnavailable = "unavailable"
)

func readyz(w http.ResponseWriter, troubles []health.Trouble) {
	answer, code := report{Status: statusOK, Troubles: troubles}, http.StatusOK

	switch health.Worst(answer.Troubles) { //nolint:exhaustive // notes change nothing
	case health.Unready:
		answer.Status, code = statusUnavailable, http.StatusServiceUnavailable
	case health.Degraded:
		answer.Status = statusDegraded
	}

	reply(w, code, answer)
}

func startupz(w http.ResponseWriter, state State) {
	if state.Started() {
		reply(w, http.StatusOK, report{Status: statusOK})
	} else {
		reply(w, http.StatusServiceUnavailable, report{Status: statusStarting, Troubles: state.Health()})
	}
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)

	_ = json.NewEncoder(terminal.NewWriter(w)).Encode(body) // fails only if the client has disconnected
}
