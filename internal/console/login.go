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

func (c *Console) askToLogIn(w http.ResponseWriter, r *http.Request, status int, next, reason string) {
	c.render(w, r, page{Title: "Log in", Status: status, Body: loginForm(within(next), reason)})
}

// within returns a path of the console to go to, so that a link to the login form cannot
// lead elsewhere.
func within(next string) string {
	if !strings.HasPrefix(next, prefix+"/") || strings.ContainsAny(next, "\\\r\n") || strings.HasPrefix(next, httpapi.LoginPath) {
		return prefix + "/"
	}

	return next
}
