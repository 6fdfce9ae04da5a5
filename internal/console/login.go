package console

import (
	"net/http"
	"strings"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/httpapi"
)

// registerLogin adds the login form, which is served to everybody.
func (c *Console) registerLogin(server *httpapi.Server) {
	server.HandleOpen("GET "+httpapi.LoginPath, secured(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.askToLogIn(w, r, http.StatusOK, r.URL.Query().Get("next"), "")
	})))
	server.HandleOpen("POST "+httpapi.LoginPath, secured(http.HandlerFunc(c.logIn)))

	if c.sessions.WithProvider() {
		server.HandleOpen("GET "+httpapi.ProviderPath, secured(http.HandlerFunc(c.leave)))
		server.HandleOpen("GET "+httpapi.CallbackPath, secured(http.HandlerFunc(c.comeBack)))
	}

	c.mux.HandleFunc("POST "+prefix+"/logout", c.allowed(access.Viewer, func(w http.ResponseWriter, r *http.Request) {
		c.sessions.End(w)
		http.Redirect(w, r, httpapi.LoginPath, http.StatusSeeOther)
	}))
}

// maxLogin bounds the login form, which anybody can send.
const maxLogin = 1 << 14

func (c *Console) logIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxLogin)

	next := r.FormValue("next")
	if status, reason := c.sessions.Begin(w, r, r.PostFormValue("token")); status != http.StatusOK {
		c.askToLogIn(w, r, status, next, reason)

		return
	}

	http.Redirect(w, r, within(next), http.StatusSeeOther)
}

// leave sends a browser to the OpenID Connect provider.
func (c *Console) leave(w http.ResponseWriter, r *http.Request) {
	next := within(r.URL.Query().Get("next"))

	address, status, reason := c.sessions.Leave(w, r, next)
	if status != http.StatusOK {
		c.askToLogIn(w, r, status, next, reason)

		return
	}

	http.Redirect(w, r, address, http.StatusSeeOther) //nolint:gosec // the provider that is configured
}

// comeBack begins the session of a browser that comes from the provider. The next page is
// opened by a page of this site, not by a redirect: browsers send the session only if they
// do not come from another site.
func (c *Console) comeBack(w http.ResponseWriter, r *http.Request) {
	next, status, reason := c.sessions.Return(w, r)
	if status != http.StatusOK {
		c.askToLogIn(w, r, status, next, reason)

		return
	}

	c.render(w, r, page{Title: "Logged in", Next: within(next), Body: more(strings.TrimPrefix(within(next), prefix), "Continue")})
}

func (c *Console) askToLogIn(w http.ResponseWriter, r *http.Request, status int, next, reason string) {
	c.render(w, r, page{Title: "Log in", Status: status, Body: loginForm(within(next), reason, c.sessions.WithProvider())})
}

// within returns a path of the console to go to, so that a link to the login form cannot
// lead elsewhere.
func within(next string) string {
	if !strings.HasPrefix(next, prefix+"/") || strings.ContainsAny(next, "\\\r\n") || strings.HasPrefix(next, httpapi.LoginPath) {
		return prefix + "/"
	}

	return next
}
