package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
)

// identityKey is the context key of a request's caller.
type identityKey struct{}

// IdentityOf returns the identity of a request's sender. Without authentication, it has
// no name.
func IdentityOf(ctx context.Context) access.Identity {
	identity, _ := ctx.Value(identityKey{}).(access.Identity)

	return identity
}

// Masked reports whether personal data must be hidden from a request's caller.
func Masked(ctx context.Context) bool { return !IdentityOf(ctx).Role.Allows(access.Operator) }

// anyone passes requests on as if an unnamed administrator had sent them. It is for a
// loopback listener without authentication.
func anyone(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, as(r, access.Identity{Role: access.Admin}))
	})
}

func as(r *http.Request, identity access.Identity) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), identityKey{}, identity))
}

// authenticator passes on requests with a credential that proves who sent them.
type authenticator struct {
	verifier *access.Verifier
	// proxied is true if a proxy passes requests on.
	proxied bool
	// login is the path of the login form, or "" if there is none. cookie is the name of
	// the cookie that holds a session, which encrypted connections alone may carry if
	// secure is true.
	login, cookie string
	secure        bool
	failures      *failures
	refused       *prometheus.CounterVec
	logger        *slog.Logger
}

// newRefused returns the counter of rejected log-ins.
func newRefused(registry *prometheus.Registry) *prometheus.CounterVec {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_logins_refused_total",
		Help: "Requests to the operator API that were rejected because of their credential (none, api_token, signed_token, other): missing, unknown, revoked, expired, invalid, without a role, limited after too many failures, or unchecked because Postgres or the provider does not answer.",
	}, []string{"credential", "reason"})
	registry.MustRegister(refused)

	return refused
}

// Reasons for rejecting log-ins, in addition to those in package access.
const (
	reasonMissing   = "missing"
	reasonNoRole    = "no_role"
	reasonLimited   = "limited"
	reasonUnchecked = "unchecked"
)

func (a *authenticator) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		identity, rejected := a.authenticate(r)

		switch {
		case rejected == nil:
			next.ServeHTTP(w, as(r, identity))
		case a.login != "" && rejected.status != http.StatusTooManyRequests && toLogin(w, r, a.login):
		default:
			rejected.write(w)
		}
	})
}

// rejection is the reason for not passing a request on.
type rejection struct {
	status int
	detail string
}

func (rej *rejection) write(w http.ResponseWriter) {
	switch rej.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="millrace"`)
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "6")
	}

	writeProblem(w, rej.status, rej.detail)
}

// authenticate returns the identity of a request's sender, or the reason for not passing
// the request on. The credential is a bearer token or, in a browser, that of its session.
func (a *authenticator) authenticate(r *http.Request) (access.Identity, *rejection) {
	scheme, bearer, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if bearer = strings.TrimSpace(bearer); !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		bearer = a.sessionOf(r)
	}

	if bearer == "" {
		a.refused.WithLabelValues("none", reasonMissing).Inc()

		return access.Identity{}, &rejection{http.StatusUnauthorized,
			"a credential is missing, expected the header Authorization: Bearer TOKEN; `millrace tokens create` creates a token"}
	}

	return a.check(r, bearer)
}

// check returns the identity behind a credential.
func (a *authenticator) check(r *http.Request, bearer string) (access.Identity, *rejection) {
	return a.identify(r, access.CredentialOf(bearer), func() (access.Identity, error) { return a.verifier.Verify(r.Context(), bearer) })
}

// identify returns the identity that verify returns, unless too many log-ins from the
// sender's address have failed. It counts and logs what is refused.
func (a *authenticator) identify(r *http.Request, credential access.Credential, verify func() (access.Identity, error)) (access.Identity, *rejection) {
	from, kind := a.caller(r), string(credential)
	if !a.failures.allowed(from) {
		a.refused.WithLabelValues(kind, reasonLimited).Inc()

		return access.Identity{}, &rejection{http.StatusTooManyRequests, "too many log-ins from this address have failed; try again in a few seconds"}
	}

	identity, err := verify()
	refused, isRefused := errors.AsType[*access.RefusedError](err)

	switch {
	case err == nil && identity.Role == "":
		a.refused.WithLabelValues(kind, reasonNoRole).Inc()
		a.logger.Warn("log-in without a role", slog.String("who", identity.Who), slog.String("from", from.String()))

		return identity, &rejection{http.StatusForbidden, event.Text(identity.Who) + " has no role here; http.oidc.roles maps none of the values of the role claim"}
	case err == nil:
		return identity, nil
	case errors.Is(err, access.ErrOtherLogin): // nothing was tried
		return identity, &rejection{http.StatusUnauthorized, err.Error()}
	case isRefused:
		a.failures.add(from)
		a.refused.WithLabelValues(kind, string(refused.Cause)).Inc()
		a.logger.Warn("log-in refused", slog.String("from", from.String()), slog.String("path", r.URL.Path), slog.Any("error", err))

		return identity, &rejection{http.StatusUnauthorized, "the credential is invalid, expired or revoked; the service log says which"}
	case r.Context().Err() != nil: // the client has disconnected, and nobody reads the response
		return identity, &rejection{http.StatusServiceUnavailable, "the request ended before the credential was checked"}
	default:
		a.refused.WithLabelValues(kind, reasonUnchecked).Inc()
		a.logger.Error("a credential could not be checked", slog.Any("error", err))

		return identity, &rejection{http.StatusServiceUnavailable, "the credential cannot be checked at present; see the service log"}
	}
}

// caller returns the address that a request comes from. Behind a proxy, this is the last
// address in X-Forwarded-For, which the proxy added, whatever the client sent. For IPv6,
// it is the address of the /64 network, because one host may use all 2^64 addresses in
// it.
func (a *authenticator) caller(r *http.Request) netip.Addr {
	text, _, _ := net.SplitHostPort(r.RemoteAddr)

	if all := r.Header.Values("X-Forwarded-For"); a.proxied && len(all) > 0 {
		last := all[len(all)-1]
		text = strings.TrimSpace(last[strings.LastIndex(last, ",")+1:])
	}

	addr, err := netip.ParseAddr(text)
	if err != nil { // some proxies add the port
		withPort, _ := netip.ParseAddrPort(text)
		addr = withPort.Addr()
	}

	addr = addr.Unmap().WithZone("")
	if prefix, err := addr.Prefix(64); addr.Is6() && err == nil {
		addr = prefix.Addr()
	}

	return addr
}

// Limits on failed log-ins from one address.
const (
	failuresAtOnce = 10
	failuresEvery  = 6 * time.Second
	maxCallers     = 10_000
)

// failures limits the failed log-ins per source address. Tokens cannot be guessed; the
// limit keeps an attacker from filling the log and from keeping Postgres busy.
type failures struct {
	mu      sync.Mutex
	callers map[netip.Addr]*rate.Limiter
}

// allowed reports whether an address may try again.
func (f *failures) allowed(from netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	limiter := f.callers[from]

	return limiter == nil || limiter.Tokens() >= 1
}

// add counts a failure.
func (f *failures) add(from netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()

	limiter := f.callers[from]
	if limiter == nil {
		f.forget()

		limiter = rate.NewLimiter(rate.Every(failuresEvery), failuresAtOnce)
		f.callers[from] = limiter
	}

	limiter.Allow()
}

// forget makes room for another caller. It forgets callers whose failures no longer
// count, and all callers if that is not enough.
func (f *failures) forget() {
	if len(f.callers) < maxCallers {
		return
	}

	for from, limiter := range f.callers {
		if limiter.Tokens() >= failuresAtOnce {
			delete(f.callers, from)
		}
	}

	if len(f.callers) >= maxCallers {
		clear(f.callers)
	}
}

// needs passes on requests from callers whose role includes the given one.
func needs(role access.Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if detail := lacks(IdentityOf(r.Context()), role); detail != "" {
			writeProblem(w, http.StatusForbidden, detail)

			return
		}

		next.ServeHTTP(w, r)
	})
}

// lacks returns the reason why the identity may not do something that needs a role, or ""
// if it may. Nobody may do anything that declares no role.
func lacks(identity access.Identity, role access.Role) string {
	switch {
	case identity.Role.Allows(role):
		return ""
	case role == "":
		return "not allowed: this operation declares no role"
	default:
		return event.Text(identity.Who) + " is " + string(identity.Role) + "; this requires the role " + string(role)
	}
}
