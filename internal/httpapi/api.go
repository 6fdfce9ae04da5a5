package httpapi

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
)

// Prefix begins the paths of the API. It is served at Prefix + "/".
const Prefix = "/api/v1"

// API is what the API needs.
type API struct {
	Failed    *failed.Store
	Orders    *order.Service
	Inventory *inventory.Service
	// Check says what consumers would reject.
	Check failed.Check
	// Pool is for the answers that are kept by Idempotency-Key.
	Pool   *pgxpool.Pool
	Logger *slog.Logger
}

// NewAPI returns the handler of the API, for all paths below Prefix. It
// describes itself at Prefix + "/openapi.json".
func NewAPI(api API) http.Handler {
	mux := http.NewServeMux()

	config := huma.DefaultConfig("Millrace", api.Failed.Release())
	config.Info.Description = "What failed and what to do about it. Errors are problem+json (RFC 9457). " +
		"Lists are pages: send the cursor `next` of one to get the next. " +
		"A POST with an Idempotency-Key that is sent again gets the same answer, for a day."
	config.OpenAPIPath = "/openapi"
	config.DocsPath = ""
	config.SchemasPath = ""
	config.CreateHooks = nil // no $schema in bodies

	h := humago.NewWithPrefix(mux, Prefix, config)
	api.entries(h)
	api.resources(h)

	return guard(newAnswers(api.Pool, api.Logger, recovered(api.Logger, known(mux))))
}

// errorsOf lists the statuses of an operation besides those that all have.
func errorsOf(statuses ...int) []int {
	return append(statuses, http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
}

// actionErrors are those of an operation that changes something.
func actionErrors(statuses ...int) []int {
	return errorsOf(append(statuses, http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusRequestTimeout)...)
}

// problem turns an error of a store into the answer. What nobody expected is
// logged and not shown.
func (api API) problem(ctx context.Context, err error) error {
	var (
		rejection *event.RejectError
		status    huma.StatusError
	)

	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return err
	case event.KindOf(err) != "":
		return huma.NewError(operate.OutcomeOf(err).Status, event.Text(err.Error()))
	case errors.As(err, &rejection):
		return huma.Error422UnprocessableEntity("the consumer would reject the payload: " + event.Text(rejection.Error()))
	case ctx.Err() != nil, postgres.IsUnavailable(err):
		return huma.Error503ServiceUnavailable("the database cannot be reached, or took too long")
	default:
		api.Logger.Error("a request failed", slog.Any("error", err))

		return huma.Error500InternalServerError("it failed; the log says why")
	}
}

// Caller is who sends a request. There is no authentication: the name is for
// the audit row.
type Caller struct {
	Operator string `header:"X-Millrace-Operator" maxLength:"100" doc:"Who acts, for the audit row; http if it is missing."`
}

// Once is what a POST may say, so that it can be sent again.
type Once struct {
	// Key is looked at before the operation is; see answers.
	Key string `header:"Idempotency-Key" minLength:"1" maxLength:"255" doc:"The same key with the same request gets the same answer, for a day."`
}

func (c Caller) actor(why string) activity.Actor {
	who := strings.TrimSpace(c.Operator)
	if who == "" {
		who = "http"
	}

	return activity.Actor{Who: who, Why: strings.TrimSpace(why)}
}

// Paging is the query of a list.
type Paging struct {
	Cursor string `query:"cursor" maxLength:"500" doc:"Where the page begins: next of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20"`
}

// cursor reads the cursor into values by a format for fmt.Sscanf. Without one
// they stay as they are.
func (p Paging) cursor(format string, values ...any) error {
	if p.Cursor == "" {
		return nil
	}

	text, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err == nil && utf8.Valid(text) {
		var n int
		if n, err = fmt.Sscanf(string(text), format, values...); err == nil && n == len(values) {
			return nil
		}
	}

	return huma.Error422UnprocessableEntity("validation failed", &huma.ErrorDetail{
		Location: "query.cursor", Message: "is no cursor, expected next of the page before", Value: p.Cursor,
	})
}

// Page are the parts of an answer that lead to the next page.
type Page struct {
	Link string `header:"Link" doc:"The next page, as rel=next, if there is one."`
}

// next makes cursor and Link of the next page. query is that of this page.
func next(path string, query url.Values, limit int, format string, values ...any) (cursor, link string) {
	cursor = base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, format, values...))

	query.Set("cursor", cursor)
	query.Set("limit", fmt.Sprint(limit))

	return cursor, fmt.Sprintf(`<%s%s?%s>; rel="next"`, Prefix, path, query.Encode())
}

// etag is the entity tag of an entry.
func etag(e failed.Entry) string { return fmt.Sprintf(`"%d-%d"`, e.ID, e.Revision) }

// matches reports whether a list of entity tags has tag. Weak ones count only
// with weak.
func matches(list, tag string, weak bool) bool {
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		if weak {
			one = strings.TrimPrefix(one, "W/")
		}

		if one == "*" || one == tag {
			return true
		}
	}

	return false
}

// content is bytes in JSON: a text, or base64 of what is none.
type content struct {
	Text   *string `json:"text,omitempty" maxLength:"1048576" doc:"The bytes, if they are UTF-8."`
	Base64 []byte  `json:"base64,omitempty" maxLength:"1398104" doc:"The bytes, if they are not."`
}

func contentOf(data []byte) content {
	if utf8.Valid(data) {
		text := string(data)

		return content{Text: &text}
	}

	return content{Base64: data}
}

func (c content) bytes() ([]byte, error) {
	switch {
	case (c.Text == nil) == (c.Base64 == nil):
		return nil, huma.Error422UnprocessableEntity("payload: expected either text or base64")
	case c.Text != nil:
		return []byte(*c.Text), nil
	default:
		return c.Base64, nil
	}
}

// headers are those of a message.
type headers event.Headers

// MarshalJSON implements json.Marshaler.
func (h headers) MarshalJSON() ([]byte, error) { return event.Headers(h).MarshalJSON() }

// Schema implements huma.SchemaProvider.
func (headers) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type:        huma.TypeObject,
		Description: `Names and values; a value that is no text is {"base64": "..."}.`,
		AdditionalProperties: &huma.Schema{OneOf: []*huma.Schema{
			{Type: huma.TypeString},
			{
				Type: huma.TypeObject, Required: []string{"base64"}, AdditionalProperties: false,
				Properties: map[string]*huma.Schema{"base64": {Type: huma.TypeString, ContentEncoding: "base64"}},
			},
		}},
	}
}
