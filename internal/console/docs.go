package console

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/asyncapi"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/httpapi"
)

// Docs are the documents that the console shows.
type Docs struct {
	AsyncAPI func() (asyncapi.Document, error)
	OpenAPI  func() *huma.OpenAPI
}

const (
	docsPath    = "/docs/asyncapi"
	openAPIPath = "/docs/openapi"
)

func (c *Console) registerDocs(server *httpapi.Server) {
	for _, path := range []string{docsPath, openAPIPath} {
		server.Handle("GET "+path, access.Viewer, http.RedirectHandler(prefix+path, http.StatusSeeOther))
	}

	c.show(docsPath, access.Viewer, c.topicList)
	c.show(docsPath+"/{topic}", access.Viewer, c.topicScreen)
	c.show(openAPIPath, access.Viewer, c.openAPI)
	c.act(docsPath+"/{topic}", access.Operator, c.tryOut)
	c.act(docsPath+"/{topic}/check", access.Operator, c.checkDraft)

	c.mux.HandleFunc("GET "+prefix+docsPath+".json", c.allowed(access.Viewer, func(w http.ResponseWriter, r *http.Request) {
		document, err := c.docs.AsyncAPI()
		c.download(w, r, "asyncapi.json", document, err)
	}))
	c.mux.HandleFunc("GET "+prefix+openAPIPath+".json", c.allowed(access.Viewer, func(w http.ResponseWriter, r *http.Request) {
		c.download(w, r, "openapi.json", c.docs.OpenAPI(), nil)
	}))
}

// download responds with a document as a file.
func (c *Console) download(w http.ResponseWriter, r *http.Request, name string, document any, err error) {
	var text []byte
	if err == nil {
		text, err = json.MarshalIndent(document, "", "  ")
	}

	if err != nil {
		c.fail(w, r, err)

		return
	}

	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	_, _ = w.Write(text) // fails only if the client has disconnected
}

// topicDocs is a topic with its message.
type topicDocs struct {
	Topic     string
	Channel   asyncapi.Channel
	Message   asyncapi.Message
	Fields    []docField
	Headers   []docField
	Schema    string
	Consumers []string
	Publisher string
	Bindings  string

	// Draft is the payload to try out, if the topic is consumed and whoever asks may act.
	MayTry  bool
	Draft   string
	Checked bool
	Error   string // why the consumers reject the draft, once it was checked
}

func (c *Console) topicList(*http.Request) (page, error) {
	document, err := c.docs.AsyncAPI()
	if err != nil {
		return page{}, err
	}

	var views []topicDocs

	for _, topic := range slices.Sorted(maps.Keys(document.Channels)) {
		view, err := viewOf(document, topic)
		if err != nil {
			return page{}, err
		}

		views = append(views, view)
	}

	return page{Title: "Topics", Section: docsPath, Body: topicsBody(document, views)}, nil
}

func (c *Console) topicScreen(r *http.Request) (page, error) {
	return c.topicPage(r, "", false, nil)
}

// topicPage shows a topic. draft replaces its example in the editor. If it was checked,
// problem is why consumers would reject it.
func (c *Console) topicPage(r *http.Request, draft string, checked bool, problem error) (page, error) {
	document, err := c.docs.AsyncAPI()
	if err != nil {
		return page{}, err
	}

	topic := r.PathValue("topic")
	if _, exists := document.Channels[topic]; !exists {
		return page{}, event.UnknownName("topic", topic, slices.Sorted(maps.Keys(document.Channels)))
	}

	view, err := viewOf(document, topic)
	if err != nil {
		return page{}, err
	}

	view.MayTry, view.Draft = len(view.Consumers) > 0 && mayAct(r), draft
	if len(view.Message.Examples) > 0 && draft == "" {
		view.Draft = indentedJSON(view.Message.Examples[0].Payload)
	}

	view.Checked = checked
	if problem != nil {
		view.Error = event.Text(problem.Error())
	}

	return page{Title: topic, Section: docsPath, Body: topicBody(view)}, nil
}

// tryOut publishes a payload and leads to its conversation.
func (c *Console) tryOut(r *http.Request) (page, error) {
	draft := r.FormValue("payload")

	id, err := c.TryOut(r.Context(), r.PathValue("topic"), compactJSON(draft), actor(r))
	if _, rejected := errors.AsType[*event.RejectError](err); rejected {
		p, pageErr := c.topicPage(r, draft, true, err)
		p.Status = http.StatusUnprocessableEntity

		return p, pageErr
	}

	if err != nil {
		return page{}, err
	}

	return page{}, redirectError{conversationsPath + "?" + url.Values{"id": {id.String()}}.Encode()}
}

// checkDraft says whether the consumers of a topic accept what is in the editor.
func (c *Console) checkDraft(r *http.Request) (page, error) {
	draft := r.FormValue("payload")
	_, err := c.CheckPayload(r.PathValue("topic"), compactJSON(draft))

	return c.topicPage(r, draft, true, err)
}

func compactJSON(text string) []byte {
	var b bytes.Buffer
	if json.Compact(&b, []byte(text)) != nil {
		return []byte(text)
	}

	return b.Bytes()
}

func indentedJSON(text []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, bytes.TrimSpace(text), "", "  ") != nil {
		return string(text)
	}

	return b.String()
}

func viewOf(document asyncapi.Document, topic string) (topicDocs, error) {
	view := topicDocs{Topic: topic, Channel: document.Channels[topic], Message: document.Components.Messages[topic]}

	schema := document.Components.Schemas[topic]
	headers := document.Components.Schemas[strings.TrimPrefix(view.Message.Headers.Ref, "#/components/schemas/")]
	view.Schema = indentedJSON(schema)

	var err error
	if view.Fields, err = schemaFields(schema); err != nil {
		return view, fmt.Errorf("reading the schema of %s: %w", topic, err)
	}

	if view.Headers, err = schemaFields(headers); err != nil {
		return view, fmt.Errorf("reading the headers of %s: %w", topic, err)
	}

	bindings, err := json.MarshalIndent(view.Channel.Bindings, "", "  ")
	if err != nil {
		return view, fmt.Errorf("writing the bindings of %s: %w", topic, err)
	}

	view.Bindings = string(bindings)

	for _, name := range slices.Sorted(maps.Keys(document.Operations)) {
		switch o := document.Operations[name]; {
		case o.Channel.Ref != "#/channels/"+topic:
		case o.Action == "receive":
			view.Consumers = append(view.Consumers, name)
		default:
			view.Publisher = strings.TrimPrefix(o.Summary, "Published by ")
		}
	}

	return view, nil
}

// docField is a row of a table of fields.
type docField struct {
	Path, Type, Limits, Description string
	Required                        bool
}

// docSchema is what the tables show of a JSON Schema.
type docSchema struct {
	Type             any                  `json:"type"`
	Description      string               `json:"description"`
	Format           string               `json:"format"`
	Pattern          string               `json:"pattern"`
	Enum             []any                `json:"enum"`
	Minimum          *json.Number         `json:"minimum"`
	Maximum          *json.Number         `json:"maximum"`
	ExclusiveMaximum *json.Number         `json:"exclusiveMaximum"`
	MinLength        *json.Number         `json:"minLength"`
	MaxLength        *json.Number         `json:"maxLength"`
	MaxItems         *json.Number         `json:"maxItems"`
	MinProperties    *json.Number         `json:"minProperties"`
	MaxProperties    *json.Number         `json:"maxProperties"`
	Required         []string             `json:"required"`
	Properties       map[string]docSchema `json:"properties"`
	Items            *docSchema           `json:"items"`
	AnyOf            []docSchema          `json:"anyOf"`
}

func schemaFields(schema json.RawMessage) ([]docField, error) {
	var s docSchema
	if err := json.Unmarshal(schema, &s); err != nil {
		return nil, err
	}

	return s.fields("", nil), nil
}

// fields appends the fields of an object, and of those in it.
func (s docSchema) fields(path string, list []docField) []docField {
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		property := s.Properties[name]
		at := strings.TrimPrefix(path+"."+name, ".")
		list = append(list, docField{
			Path: at, Type: property.typeName(), Limits: property.limits(), Description: property.Description, Required: slices.Contains(s.Required, name),
		})
		list = property.fields(at, list)

		if property.Items != nil {
			list = property.Items.fields(at+"[]", list)
		}
	}

	return list
}

// typeName returns the type for people. null, which is the same as no field, is left out.
func (s docSchema) typeName() string {
	switch t := s.Type.(type) {
	case string:
		return t
	case []any:
		var names []string

		for _, name := range t {
			if name != "null" {
				names = append(names, fmt.Sprint(name))
			}
		}

		return strings.Join(names, " or ")
	}

	var names []string

	for _, form := range s.AnyOf {
		if name := form.typeName(); name != "null" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}

	return cmp.Or(strings.Join(names, " or "), "any")
}

// limits returns the constraints for people.
func (s docSchema) limits() string {
	var parts []string

	add := func(text string, value *json.Number) {
		if value != nil {
			parts = append(parts, fmt.Sprintf(text, *value))
		}
	}

	if len(s.Enum) > 0 {
		var values []string

		for _, value := range s.Enum {
			if value != nil {
				values = append(values, fmt.Sprint(value))
			}
		}

		parts = append(parts, "one of "+strings.Join(values, ", "))
	}

	if s.Format != "" && s.Format != "int64" {
		parts = append(parts, s.Format)
	}

	add("at least %s", s.Minimum)
	add("at most %s", s.Maximum)
	add("less than %s", s.ExclusiveMaximum)
	add("at least %s characters", s.MinLength)
	add("at most %s characters", s.MaxLength)
	add("at most %s elements", s.MaxItems)
	add("at least %s fields", s.MinProperties)
	add("at most %s fields", s.MaxProperties)

	return strings.Join(parts, "; ")
}

// operationView is an operation of the HTTP API.
type operationView struct {
	Method, Path, Summary, Description, Role string
	Parameters                               []docField
}

func (c *Console) openAPI(*http.Request) (page, error) {
	document := c.docs.OpenAPI()

	var views []operationView

	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		item := document.Paths[path]
		for _, o := range []*huma.Operation{item.Get, item.Post, item.Patch, item.Put, item.Delete} {
			if o != nil {
				view, err := operationOf(document, o)
				if err != nil {
					return page{}, err
				}

				views = append(views, view)
			}
		}
	}

	return page{Title: "HTTP API", Section: docsPath, Body: openAPIBody(views)}, nil
}

func operationOf(document *huma.OpenAPI, o *huma.Operation) (operationView, error) {
	view := operationView{Method: o.Method, Path: httpapi.Prefix + o.Path, Summary: o.Summary, Description: o.Description}

	for _, requirement := range o.Security {
		for _, roles := range requirement {
			view.Role = strings.Join(roles, ", ")
		}
	}

	for _, p := range o.Parameters {
		f := docField{Path: p.Name + " (" + p.In + ")", Description: p.Description, Required: p.Required}
		if p.Schema != nil {
			f.Type, f.Description = p.Schema.Type, cmp.Or(p.Description, p.Schema.Description)
		}

		view.Parameters = append(view.Parameters, f)
	}

	if o.RequestBody == nil {
		return view, nil
	}

	for _, content := range o.RequestBody.Content {
		schema := content.Schema
		if schema != nil && schema.Ref != "" {
			schema = document.Components.Schemas.SchemaFromRef(schema.Ref)
		}

		text, err := json.Marshal(schema)
		if err != nil {
			return view, fmt.Errorf("describing %s: %w", o.OperationID, err)
		}

		fields, err := schemaFields(text)
		if err != nil {
			return view, fmt.Errorf("describing %s: %w", o.OperationID, err)
		}

		for _, f := range fields {
			f.Path += " (body)"
			view.Parameters = append(view.Parameters, f)
		}
	}

	return view, nil
}
