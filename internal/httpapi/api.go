package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// Prefix is the path prefix of the API, which is served at Prefix + "/".
const Prefix = "/api/v1"

// API registers operations under Prefix.
type API struct {
	huma   huma.API
	logger *slog.Logger
	// methods maps each path to its methods.
	methods map[string][]string
	handler http.Handler
}

// NewAPI returns the API, a handler for all paths under Prefix, with the engine's
// operations and those that register adds. It serves its description at Prefix +
// "/openapi.json".
func NewAPI(operator *operate.Operator, logger *slog.Logger, register ...func(*API)) *API {
	mux := http.NewServeMux()

	config := huma.DefaultConfig("Millrace", operator.Failed.Release())
	config.Info.Description = "Operations for operators. Errors are problem+json (RFC 9457). " +
		"Lists are paged: pass the cursor `next` of a page to get the next one."
	config.RejectUnknownQueryParameters = true // a mistyped filter would select everything
	config.OpenAPIPath = "/openapi"
	config.DocsPath = ""
	config.SchemasPath = ""
	config.CreateHooks = nil // no $schema in bodies
	config.Formats = formats
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{bearerScheme: {
		Type: "http", Scheme: "bearer", Description: "An API token, or a token of the OpenID Connect provider; not needed if http.authentication is none. Each operation states the role that it requires.",
	}}
	config.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)

	api := &API{huma: humago.NewWithPrefix(mux, Prefix, config), logger: logger, methods: map[string][]string{}}

	for _, register := range append([]func(*API){engine{operator}.register}, register...) {
		register(api)
	}

	api.handler = storable(known(mux, api.methods))

	return api
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }

// Description returns the OpenAPI document of the API, version 3.1.
func (a *API) Description() *huma.OpenAPI { return a.huma.OpenAPI() }

// formats decodes requests as strictly as messages. In responses it escapes what a
// terminal would interpret, because people read responses in terminals.
var formats = map[string]huma.Format{"application/json": jsonFormat, "json": jsonFormat}

var jsonFormat = huma.Format{
	Marshal: func(w io.Writer, v any) error { return huma.DefaultJSONFormat.Marshal(terminal.NewWriter(w), v) },
	Unmarshal: func(data []byte, v any) error {
		if err := event.CheckStorable(data); err != nil {
			return err
		}

		return event.Unmarshal(data, v)
	},
}

// schemaName prefixes the name of a type with its package, unless it is a view of
// this API, so that equal names in two domains differ.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}

	if t.PkgPath() == "" {
		return huma.DefaultSchemaNamer(t, hint)
	}

	name, suffix := path.Base(t.PkgPath())+"."+t.Name(), ""
	if _, item, generic := strings.Cut(strings.TrimSuffix(t.Name(), "]"), "["); generic { // a list of items
		name, suffix = path.Base(strings.TrimLeft(item, "*")), "List"
	}

	pkg, typ, _ := strings.Cut(name, ".")
	typ = strings.ToUpper(typ[:1]) + typ[1:] + suffix

	if pkg == "httpapi" || pkg == "app" {
		return typ
	}

	return strings.ToUpper(pkg[:1]) + pkg[1:] + typ
}

// requestTimeout bounds a request. It is below the server's timeout, so that the
// response can report it.
const requestTimeout = 25 * time.Second

// Get adds an operation that only reads, for callers whose role includes the given one.
func Get[I, O any](a *API, role access.Role, path, summary string, handler func(context.Context, *I) (*O, error), options ...func(*huma.Operation)) {
	register(a, role, http.MethodGet, path, summary, handler, options)
}

// Post adds an operation that makes changes, for callers whose role includes the given
// one.
func Post[I, O any](a *API, role access.Role, path, summary string, handler func(context.Context, *I) (*O, error), options ...func(*huma.Operation)) {
	register(a, role, http.MethodPost, path, summary, handler, options)
}

func register[I, O any](a *API, role access.Role, method, path, summary string, handler func(context.Context, *I) (*O, error), options []func(*huma.Operation)) {
	var output O

	operation := huma.Operation{
		OperationID: huma.GenerateOperationID(method, path, output), Method: method, Path: path, Summary: summary,
		Tags: []string{strings.Split(path, "/")[1]},
		Errors: []int{
			http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity,
			http.StatusTooManyRequests, http.StatusServiceUnavailable,
		},
		Security:    []map[string][]string{{bearerScheme: {string(role)}}},
		Middlewares: huma.Middlewares{a.needs(role)},
	}

	if method != http.MethodGet {
		operation.Errors = append(operation.Errors, http.StatusBadRequest, http.StatusConflict, http.StatusPreconditionFailed,
			http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusRequestTimeout)
	}

	for _, option := range options {
		option(&operation)
	}

	if method == http.MethodGet {
		a.methods[Prefix+path] = append(a.methods[Prefix+path], method, http.MethodHead)
	} else {
		a.methods[Prefix+path] = append(a.methods[Prefix+path], method)
	}

	huma.Register(a.huma, operation, func(ctx context.Context, in *I) (*O, error) {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()

		out, err := handler(ctx, in)
		if err != nil {
			return nil, a.problem(ctx, err)
		}

		return out, nil
	})
}

// bearerScheme is the name of the security scheme in the description of the API.
const bearerScheme = "bearer"

// needs passes on requests from callers whose role includes the given one. It checks
// before any of the request is read.
func (a *API) needs(role access.Role) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if detail := lacks(IdentityOf(ctx.Context()), role); detail != "" {
			_ = huma.WriteErr(a.huma, ctx, http.StatusForbidden, detail) // fails only if the client has disconnected

			return
		}

		next(ctx)
	}
}

// problem converts an error to a response. It logs unexpected errors and does not
// expose them.
func (a *API) problem(ctx context.Context, err error) error {
	if _, ok := errors.AsType[huma.StatusError](err); ok {
		return err
	}

	if ctx.Err() != nil {
		err = ctx.Err()
	}

	outcome := operate.OutcomeOf(err)
	detail := event.Text(scrub.Text(err.Error()))

	switch outcome.Status {
	case http.StatusServiceUnavailable:
		detail = "the database is unavailable or too slow"
	case http.StatusInternalServerError:
		a.logger.Error("request failed", slog.Any("error", err))

		detail = "the request failed; see the service log"
	}

	problem := &huma.ErrorModel{
		Type: "urn:millrace:problem:" + outcome.Name, Title: http.StatusText(outcome.Status), Status: outcome.Status, Detail: detail,
	}

	if known, ok := errors.AsType[*event.Error](err); ok && known.Detail != nil {
		problem.Errors = []*huma.ErrorDetail{{Message: detail, Value: known.Detail}}
	}

	return problem
}

// versionOutput is the response of /version.
type versionOutput struct {
	Body struct {
		Version string `json:"version"`
	}
}

// engine implements the operations of the engine.
type engine struct{ *operate.Operator }

func (e engine) register(a *API) {
	e.registerFailed(a)
	e.registerWaiting(a)
	e.registerRefused(a)
	e.registerConsumers(a)
	e.registerHistory(a)
	e.registerTopics(a)
	e.registerErasures(a)

	Get(a, access.Viewer, "/version", "Show the version of the program", func(context.Context, *struct{}) (*versionOutput, error) {
		out := &versionOutput{}
		out.Body.Version = e.Failed.Release()

		return out, nil
	})
}
