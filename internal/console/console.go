// Package console serves the operator's console: pages over package operate, as the
// command line and the HTTP API are. It has no SQL and no rules of its own.
//
// A screen is a function that returns a page for a request; see screen. Each screen has a
// file with its function and a .templ file with its markup, from which `make generate`
// writes Go.
package console

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/a-h/templ"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/httpapi"
)

// prefix is the path below which the console is served.
const prefix = httpapi.ConsolePrefix

// Console holds what the screens need.
type Console struct {
	*operate.Operator

	sessions *httpapi.Sessions
	hub      *hub
	audits   *audits
	kinds    []Kind
	docs     Docs
	mux      *http.ServeMux
	logger   *slog.Logger
}

// section is an entry of the navigation.
type section struct{ Path, Title string }

// sections lists the screens that the navigation leads to.
var sections = []section{
	{"/now", "Now"},
	{"/failures", "Failures"},
	{"/waiting", "Waiting keys"},
	{conversationsPath, "Conversations"},
	{"/consumers", "Consumers and brokers"},
	{"/audit", "Audit"},
	{"/activity", "Activity"},
	{docsPath, "Docs"},
}

// Serve adds the console to server. It has a screen for each kind of thing that the business
// keeps.
func Serve(server *httpapi.Server, operator *operate.Operator, kinds []Kind, docs Docs, logger *slog.Logger) {
	logger = logger.With(slog.String("component", "console"))
	c := &Console{Operator: operator, sessions: server.Sessions(), hub: newHub(logger), audits: newAudits(), kinds: kinds, docs: docs, mux: http.NewServeMux(), logger: logger}

	toStart := http.RedirectHandler(prefix+sections[0].Path, http.StatusSeeOther)
	server.Handle("GET /{$}", access.Viewer, toStart)
	server.Handle("GET "+prefix+"/{$}", access.Viewer, toStart)
	server.Handle(prefix+"/", access.Viewer, secured(c.mux))
	server.HandleOpen("GET "+prefix+"/assets/", secured(http.HandlerFunc(serveAsset)))
	server.OnClose(c.hub.close)
	server.OnClose(c.audits.stop)

	c.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, event.Errorf(event.NotFound, "there is no page %s", r.URL.Path))
	})

	if c.sessions.Required() {
		c.registerLogin(server)
	}

	c.registerNow()
	c.registerFailures()
	c.registerEntry()
	c.registerReplay()
	c.registerWaiting()
	c.registerConsumers()
	c.registerActivity()
	c.registerConversations()
	c.registerKinds()
	c.registerAudit()
	c.registerDocs(server)
}

// policy allows what the console is made of: its own files, and nothing inline.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")

		next.ServeHTTP(w, r)
	})
}

// page is what a screen shows.
type page struct {
	// Title is that of the page and of its heading.
	Title string
	// Section is the path of the section that the page belongs to.
	Section string
	// Body is shown below the heading. If Live is true, it is kept up to date while
	// somebody looks; it must then say nothing about whoever asked for it but what
	// follows from their role.
	Body templ.Component
	Live bool
	// Head and Tail are shown before and after the body, and are never updated: forms, in
	// which somebody may be typing. They may be nil.
	Head, Tail templ.Component
	// Next is the path of a page to go to at once, or "".
	Next string
	// Status is the HTTP status, 200 if it is 0.
	Status int
}

// screen returns the page for a request.
type screen func(r *http.Request) (page, error)

// pageTimeout bounds a request. It is below the server's timeout, so that the response
// can report it.
const pageTimeout = 25 * time.Second

// show serves the pages of a screen at a path, to callers whose role includes the given
// one. A browser that asks for an event stream gets the page's body whenever it changes.
func (c *Console) show(path string, role access.Role, s screen) {
	c.mux.HandleFunc("GET "+prefix+path, c.allowed(role, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
			c.stream(w, r, s)

			return
		}

		c.answer(w, r, s)
	}))
}

// act serves an action at a path: s acts on a form and returns a page with the outcome,
// or a redirectError.
func (c *Console) act(path string, role access.Role, s screen) {
	c.mux.HandleFunc("POST "+prefix+path, c.allowed(role, func(w http.ResponseWriter, r *http.Request) { c.answer(w, r, s) }))
}

// maxForm fits the largest payload with every byte escaped in a form.
const maxForm = 3*event.MaxPayload + 1<<16

// allowed passes requests on that the role allows and whose text can be stored.
func (c *Console) allowed(role access.Role, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept, Cookie")

		if who := httpapi.IdentityOf(r.Context()); !who.Role.Allows(role) {
			c.refuse(w, r, http.StatusForbidden, event.Text(who.Who)+" is "+string(who.Role)+"; this requires the role "+string(role))

			return
		}

		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			c.refuse(w, r, http.StatusBadRequest, "the form could not be read: "+err.Error())

			return
		}

		for name, values := range r.Form {
			for _, value := range append(values, name) {
				if err := event.Storable(value); err != nil {
					c.refuse(w, r, http.StatusUnprocessableEntity, event.Text(name)+": "+err.Error())

					return
				}
			}
		}

		next(w, r)
	}
}

// part serves a part of a page at a path, for htmx.
func (c *Console) part(path string, role access.Role, s func(r *http.Request) (templ.Component, error)) {
	c.mux.HandleFunc("POST "+prefix+path, c.allowed(role, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
		defer cancel()

		component, err := s(r.WithContext(ctx))
		if to, ok := errors.AsType[redirectError](err); ok {
			w.Header().Set("Hx-Redirect", prefix+to.path)

			return
		}

		if err != nil {
			component = problem(c.explain(r, err).detail)
		}

		w.Header().Set("Content-Type", "text/html; charset=utf-8")

		_ = component.Render(ctx, w) // fails only if the client has disconnected
	}))
}

// answer responds with the page of a screen, or with its error.
func (c *Console) answer(w http.ResponseWriter, r *http.Request, s screen) {
	ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
	defer cancel()

	p, err := s(r.WithContext(ctx))
	if to, ok := errors.AsType[redirectError](err); ok {
		http.Redirect(w, r, prefix+to.path, http.StatusSeeOther)

		return
	}

	if err != nil {
		c.fail(w, r, err)

		return
	}

	c.render(w, r, p)
}

// redirectError is returned by a screen to send the browser to another one.
type redirectError struct{ path string }

func (e redirectError) Error() string { return "see " + e.path }

// failure is an error as a person sees it.
type failure struct {
	status int
	detail string
}

// explain says what an error means to a person. It logs those that nobody expected.
func (c *Console) explain(r *http.Request, err error) failure {
	outcome := operate.OutcomeOf(err)

	switch outcome.Status {
	case http.StatusServiceUnavailable:
		return failure{outcome.Status, "The database is unavailable or too slow. The screen Now shows what is wrong."}
	case http.StatusInternalServerError:
		c.logger.Error("request failed", slog.String("path", r.URL.Path), slog.Any("error", err))

		return failure{outcome.Status, "The request failed; see the service log."}
	default:
		return failure{outcome.Status, event.Text(scrub.Text(err.Error()))}
	}
}

// fail responds with an error.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := c.explain(r, err)
	c.refuse(w, r, f.status, f.detail)
}

func (c *Console) refuse(w http.ResponseWriter, r *http.Request, status int, detail string) {
	c.render(w, r, page{Title: http.StatusText(status), Status: status, Body: problem(detail)})
}

// frame is what surrounds a page.
type frame struct {
	page

	Who      access.Identity
	Login    bool // whether there is a login, so that one can log out
	Release  string
	Here     *url.URL
	Paused   bool
	Sections []section
}

func (c *Console) render(w http.ResponseWriter, r *http.Request, p page) {
	f := frame{
		page: p, Who: httpapi.IdentityOf(r.Context()), Login: c.sessions.Required(), Release: c.Failed.Release(),
		Here: r.URL, Paused: r.URL.Query().Has(pausedParam), Sections: c.sections(),
	}

	w.Header().Set("Content-Type", "text/html; charset=utf-8")

	if p.Status != 0 {
		w.WriteHeader(p.Status)
	}

	_ = layout(f).Render(r.Context(), w) // fails only if the client has disconnected
}

// pausedParam is the parameter of a page that is not updated.
const pausedParam = "paused"

// Connect returns the address of the updates, or "" if there are none.
func (f frame) Connect() string {
	if !f.Live || f.Paused {
		return ""
	}

	return f.Here.RequestURI()
}

// Toggle returns the address of the page with updates paused or resumed.
func (f frame) Toggle() string {
	query := f.Here.Query()
	if f.Paused {
		query.Del(pausedParam)
	} else {
		query.Set(pausedParam, "1")
	}

	return address(f.Here.Path, query)
}

// address returns a path with a query, if there is one.
func address(path string, query url.Values) string {
	if len(query) == 0 {
		return path
	}

	return path + "?" + query.Encode()
}

// masked reports whether personal data must be hidden from whoever asks.
func masked(r *http.Request) bool { return httpapi.Masked(r.Context()) }

// actor returns who acts. Without authentication there is no name, and the console is
// recorded.
func actor(r *http.Request) activity.Actor {
	who := httpapi.IdentityOf(r.Context()).Who
	if who == "" {
		who = "console"
	}

	return activity.Actor{Who: who, Why: strings.TrimSpace(r.FormValue("why")), Request: event.NewID()}
}

// stamp formats a time for people. The browser shows it relative to now.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000Z") }

// machine formats a time for the browser.
func machine(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// title capitalises the first letter of a sentence.
func title(text string) string {
	if text == "" {
		return text
	}

	return strings.ToUpper(text[:1]) + text[1:]
}

// sections returns the entries of the navigation: those of the engine, with the kinds of
// the business behind the conversations.
func (c *Console) sections() []section {
	at := slices.IndexFunc(sections, func(s section) bool { return s.Path == conversationsPath }) + 1

	var kinds []section
	for _, k := range c.kinds {
		kinds = append(kinds, section{"/" + k.Path, k.Title})
	}

	return slices.Insert(slices.Clone(sections), at, kinds...)
}

// mayAct reports whether whoever asks may act.
func mayAct(r *http.Request) bool {
	return httpapi.IdentityOf(r.Context()).Role.Allows(access.Operator)
}
