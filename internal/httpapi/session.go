package httpapi

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Paths of the console and of its login form. The form is served to everybody; see
// Server.HandleOpen.
const (
	ConsolePrefix = "/console"
	LoginPath     = ConsolePrefix + "/login"
	// ProviderPath leads to the OpenID Connect provider, which sends the browser back to
	// CallbackPath.
	ProviderPath = LoginPath + "/provider"
	CallbackPath = LoginPath + "/callback"
)

// maxSession is the maximum length of a credential in a cookie, in bytes. Browsers drop
// longer cookies without saying so.
const maxSession = 3800

// Sessions lets browsers log in. A session is the credential itself, in a cookie that
// scripts cannot read: every replica can check it, it ends when the credential is revoked
// or expires, and it needs no table.
type Sessions struct{ auth *authenticator }

// Required reports whether a browser has to log in.
func (s *Sessions) Required() bool { return s.auth != nil }

// Begin starts a session with a credential. If the credential is not accepted, Begin
// returns the HTTP status and the reason instead.
func (s *Sessions) Begin(w http.ResponseWriter, r *http.Request, credential string) (status int, reason string) {
	credential = strings.TrimSpace(credential)

	switch {
	case credential == "":
		return http.StatusUnprocessableEntity, "the token is missing; `millrace tokens create` creates one"
	case len(credential) > maxSession:
		return http.StatusUnprocessableEntity, "the token is too long for a browser's cookie; use an API token of `millrace tokens create`"
	}

	if _, rejected := s.auth.check(r, credential); rejected != nil {
		return rejected.status, rejected.detail
	}

	http.SetCookie(w, s.auth.session(url.QueryEscape(credential), 0))

	return http.StatusOK, ""
}

// WithProvider reports whether a browser can log in at the OpenID Connect provider.
func (s *Sessions) WithProvider() bool { return s.auth != nil && s.auth.verifier.LogsIn() }

// Limits on a log-in at the provider.
const (
	loginLife = 10 * time.Minute
	maxNext   = 2000 // bytes; a longer path is forgotten
)

// Leave returns the address of the provider at which a browser logs in, to come back to
// CallbackPath and then to next. If the provider cannot be reached, Leave returns the HTTP
// status and the reason instead.
func (s *Sessions) Leave(w http.ResponseWriter, r *http.Request, next string) (address string, status int, reason string) {
	address, login, err := s.auth.verifier.BeginLogin(s.auth.callback(r))
	if err != nil { // it is logged there
		return "", http.StatusServiceUnavailable, "the OpenID Connect provider cannot be reached at present; see the service log"
	}

	if len(next) > maxNext {
		next = ""
	}

	kept := url.Values{"state": {login.State}, "nonce": {login.Nonce}, "verifier": {login.Verifier}, "next": {next}}
	http.SetCookie(w, s.auth.begun(kept.Encode(), int(loginLife.Seconds())))

	return address, http.StatusOK, ""
}

// Return begins a session for a browser that comes back from the provider, and returns
// where it wanted to go. If the log-in is not accepted, Return returns the HTTP status and
// the reason instead.
func (s *Sessions) Return(w http.ResponseWriter, r *http.Request) (next string, status int, reason string) {
	var kept url.Values
	if cookie, err := r.Cookie(s.auth.begun("", 0).Name); err == nil {
		kept, _ = url.ParseQuery(cookie.Value)
	}

	http.SetCookie(w, s.auth.begun("", -1)) // it serves once

	query, next := r.URL.Query(), kept.Get("next")
	if code := query.Get("error"); code != "" {
		return next, http.StatusUnauthorized, "the provider has not logged you in: " + event.Text(event.Shorten(code, 100))
	}

	var bearer string

	login := access.Login{State: kept.Get("state"), Nonce: kept.Get("nonce"), Verifier: kept.Get("verifier")}

	_, rejected := s.auth.identify(r, access.SignedToken, func() (who access.Identity, err error) {
		bearer, who, err = s.auth.verifier.EndLogin(r.Context(), s.auth.callback(r), login, query.Get("state"), query.Get("code"))

		return who, err
	})

	switch {
	case rejected != nil:
		return next, rejected.status, rejected.detail
	case len(bearer) > maxSession:
		return next, http.StatusUnprocessableEntity, "the provider's token is too long for a browser's cookie; use an API token of `millrace tokens create`"
	}

	http.SetCookie(w, s.auth.session(url.QueryEscape(bearer), 0))

	return next, http.StatusOK, ""
}

// callback returns the address to which the provider sends a browser back. The provider
// accepts the registered ones only, so the Host header cannot lead elsewhere.
func (a *authenticator) callback(r *http.Request) string {
	scheme := "http"
	if a.secure {
		scheme = "https"
	}

	return scheme + "://" + r.Host + CallbackPath
}

// begun returns the cookie of a log-in that a browser has begun. The browser comes back
// from another site, so it must send the cookie then.
func (a *authenticator) begun(value string, maxAge int) *http.Cookie {
	cookie := a.session(value, maxAge) //nolint:gosec // as secure as that one
	cookie.Name += "-login"
	cookie.SameSite = http.SameSiteLaxMode

	return cookie
}

// End ends the session of a browser.
func (s *Sessions) End(w http.ResponseWriter) { http.SetCookie(w, s.auth.session("", -1)) }

// allowSessions accepts sessions in addition to bearer tokens. With the prefix __Host-,
// browsers accept the cookie over TLS only, and no other host can set it.
func (a *authenticator) allowSessions(secure bool) {
	a.login, a.cookie, a.secure = LoginPath, "millrace", secure
	if secure {
		a.cookie = "__Host-millrace"
	}
}

// session returns the cookie of a session, which ends with the browser if maxAge is 0.
func (a *authenticator) session(value string, maxAge int) *http.Cookie {
	return &http.Cookie{Name: a.cookie, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: a.secure, SameSite: http.SameSiteStrictMode} //nolint:gosec // Secure unless nobody encrypts, which is on loopback only
}

// sessionOf returns the credential in the session of a request, or "".
func (a *authenticator) sessionOf(r *http.Request) string {
	if a.cookie == "" {
		return ""
	}

	cookie, err := r.Cookie(a.cookie)
	if err != nil {
		return ""
	}

	credential, err := url.QueryUnescape(cookie.Value)
	if err != nil {
		return ""
	}

	return credential
}

// toLogin sends a person who must log in to the form, from where they return to the page
// that they asked for. It returns false for a program, which needs the reason.
func toLogin(w http.ResponseWriter, r *http.Request, login string) bool {
	if r.Header.Get("Hx-Request") == "true" { // a part of a page: the page goes to the form
		at, _ := url.Parse(r.Header.Get("Hx-Current-Url"))
		if at == nil {
			at = &url.URL{}
		}

		w.Header().Set("Hx-Redirect", login+"?"+url.Values{"next": {at.RequestURI()}}.Encode())
		w.WriteHeader(http.StatusUnauthorized)

		return true
	}

	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		return false
	}

	next := r.URL.RequestURI()
	if r.Method != http.MethodGet {
		next = ConsolePrefix + "/"
	}

	http.Redirect(w, r, login+"?"+url.Values{"next": {next}}.Encode(), http.StatusSeeOther)

	return true
}
