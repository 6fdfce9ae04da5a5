package httpapi

import (
	"net/http"
	"net/url"
	"strings"
)

// Paths of the console and of its login form. The form is served to everybody; see
// Server.HandleOpen.
const (
	ConsolePrefix = "/console"
	LoginPath     = ConsolePrefix + "/login"
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
