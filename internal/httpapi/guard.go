package httpapi

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// secured sets security headers on all responses.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")

		next.ServeHTTP(w, r)
	})
}

// local refuses cross-site requests and requests for other hosts. It is for a loopback
// listener without authentication, because a browser on this machine may send both.
func local(next http.Handler) http.Handler {
	protected := sameSite(next)

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Another site can resolve its own name to loopback (DNS rebinding). The
		// browser then considers the request same-origin.
		if !localHost(r.Host) {
			writeProblem(w, http.StatusForbidden, "the Host header names another server; use localhost or a loopback address")

			return
		}

		protected.ServeHTTP(w, r)
	})
}

func sameSite(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusForbidden, "cross-site requests are not allowed")
	}))

	return protection.Handler(next)
}

func localHost(hostport string) bool {
	host := strings.Trim(hostport, "[]")
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}

	return check.Loopback(host)
}

// storable refuses requests with text that Postgres cannot store: no name that the
// service knows contains such text. Message keys that are not text are shown and
// selected in quoted form. JSON bodies are checked when they are decoded.
func storable(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkText(r); err != nil {
			writeProblem(w, http.StatusUnprocessableEntity, err.Error())

			return
		}

		next.ServeHTTP(w, r)
	})
}

func checkText(r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}

	texts := map[string][]string{"path": {r.URL.Path}, "header." + operatorHeader: r.Header.Values(operatorHeader)}
	for name, values := range query {
		texts["query."+terminal.Line(name)] = append(values, name)
	}

	for _, location := range slices.Sorted(maps.Keys(texts)) {
		for _, text := range texts[location] {
			if err := event.Storable(text); err != nil {
				return fmt.Errorf("%s: %w", location, err)
			}
		}
	}

	return nil
}

// recovered logs a panic and responds with a problem. The server alone would just
// close the connection.
func recovered(logger *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if value := recover(); value != nil {
				logger.Error("request panicked", slog.Any("panic", value), slog.String("stack", string(debug.Stack())))
				writeProblem(w, http.StatusInternalServerError, "the request failed; see the service log")
			}
		}()

		next.ServeHTTP(w, r)
	})
}

// known responds with a problem to requests that match no pattern in mux. It also keeps
// a path such as /failed/groups from matching /failed/{id}.
func known(mux *http.ServeMux, methods map[string][]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if allowed := methods[r.URL.Path]; allowed != nil && !slices.Contains(allowed, r.Method) {
			notAllowed(w, r, strings.Join(allowed, ", "))

			return
		}

		handler, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r) // not handler, because mux sets the path values

			return
		}

		probe := probe{header: http.Header{}}
		handler.ServeHTTP(&probe, r)

		if allow := probe.header.Get("Allow"); allow != "" {
			notAllowed(w, r, allow)

			return
		}

		writeProblem(w, http.StatusNotFound, "no such path; see "+Prefix+"/openapi.json")
	})
}

func notAllowed(w http.ResponseWriter, r *http.Request, allowed string) {
	w.Header().Set("Allow", allowed)
	writeProblem(w, http.StatusMethodNotAllowed, r.Method+" is not allowed here, only "+allowed)
}

// probe records the headers of a response and discards the rest.
type probe struct{ header http.Header }

func (p *probe) Header() http.Header { return p.header }

func (*probe) Write(data []byte) (int, error) { return len(data), nil }

func (*probe) WriteHeader(int) {}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)

	_ = json.NewEncoder(terminal.NewWriter(w)).Encode(huma.ErrorModel{Title: http.StatusText(status), Status: status, Detail: detail})
}
