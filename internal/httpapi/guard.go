package httpapi

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// guard is the outside of the API: security headers on every answer, and no
// request that a page of another site sends. The listener has no
// authentication, so what reaches it must be meant for it.
func guard(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusForbidden, "a page of another site sent this request")
	}))

	protected := protection.Handler(next)

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")

		// A name that another site makes point to loopback is its own origin
		// (DNS rebinding), which the protection cannot tell.
		if !localHost(r.Host) {
			writeProblem(w, http.StatusForbidden, "the Host header names another server: use localhost or a loopback address")

			return
		}

		protected.ServeHTTP(w, r)
	})
}

func localHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}

	ip := net.ParseIP(host)

	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// recovered answers a panic with a problem, and logs it: the server would close
// the connection without a word.
func recovered(logger *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if value := recover(); value != nil {
				logger.Error("a request panicked", slog.Any("panic", value), slog.String("stack", string(debug.Stack())))
				writeProblem(w, http.StatusInternalServerError, "the request failed; see the log of the service")
			}
		}()

		next.ServeHTTP(w, r)
	})
}

// known answers what mux has no pattern for as the API does: with a problem. A
// path that stands for itself does not match the pattern of a parameter too.
func known(mux *http.ServeMux, methods map[string][]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if allowed := methods[r.URL.Path]; allowed != nil && !slices.Contains(allowed, r.Method) {
			notAllowed(w, r, strings.Join(allowed, ", "))

			return
		}

		handler, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r) // and not handler: mux sets the values of the path

			return
		}

		probe := probe{header: http.Header{}}
		handler.ServeHTTP(&probe, r)

		if allow := probe.header.Get("Allow"); allow != "" {
			notAllowed(w, r, allow)

			return
		}

		writeProblem(w, http.StatusNotFound, "no such address: see "+Prefix+"/openapi.json")
	})
}

func notAllowed(w http.ResponseWriter, r *http.Request, allowed string) {
	w.Header().Set("Allow", allowed)
	writeProblem(w, http.StatusMethodNotAllowed, r.Method+" is not possible here, only "+allowed)
}

// probe takes the headers of an answer and drops the rest.
type probe struct{ header http.Header }

func (p *probe) Header() http.Header { return p.header }

func (*probe) Write(data []byte) (int, error) { return len(data), nil }

func (*probe) WriteHeader(int) {}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)

	// The client is gone: nobody to tell.
	_ = json.NewEncoder(w).Encode(huma.ErrorModel{Title: http.StatusText(status), Status: status, Detail: detail})
}
