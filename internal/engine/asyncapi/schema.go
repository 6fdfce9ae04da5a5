// Package asyncapi describes the messages of a service from its routing table: the JSON
// Schema of each payload, whether a change to one is compatible, and the AsyncAPI document.
package asyncapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Payload describes the payload of a topic.
type Payload struct {
	Topic string
	// Schema is a JSON Schema, draft 2020-12, without references.
	Schema json.RawMessage
	// Consumers are the consumers of the topic, and Publishers those that publish it.
	Consumers, Publishers []string
}

// Payloads returns the payloads of the routing table, those that are consumed first. If a
// topic has several types, because a consumer reads only some fields, the published one
// counts.
func Payloads(router *consumer.Router) ([]Payload, error) {
	consumed, published := router.Topics()

	var list []Payload

	for _, topic := range slices.Concat(consumed, published) {
		var payload event.Payload

		p := Payload{Topic: topic}

		for _, route := range router.Routes() {
			if route.Topic == topic {
				p.Consumers = append(p.Consumers, route.Consumer)

				if payload == nil {
					payload = route.Payload
				}
			}

			for _, out := range route.Publishes {
				if out.Topic() == topic {
					payload, p.Publishers = out, append(p.Publishers, route.Consumer)
				}
			}
		}

		schema, err := schemaOf(payload, p)
		if err != nil {
			return nil, fmt.Errorf("describing %s: %w", topic, err)
		}

		p.Schema = schema
		list = append(list, p)
	}

	return list, nil
}

// dialect is the version of JSON Schema.
const dialect = "https://json-schema.org/draft/2020-12/schema"

// Extensions in the schema of a payload. Compatibility depends on who uses it.
const (
	extensionConsumed  = "x-consumed"
	extensionPublished = "x-published"
)

func schemaOf(payload event.Payload, p Payload) (json.RawMessage, error) {
	registry := huma.NewMapRegistry("#/", func(t reflect.Type, hint string) string {
		return path.Base(t.PkgPath()) + huma.DefaultSchemaNamer(t, hint)
	})
	registry.RegisterTypeAlias(reflect.TypeFor[event.Time](), reflect.TypeFor[timeSchema]())

	d := describer{registry: registry, read: len(p.Consumers) > 0}
	schema := d.describe(registry.Schema(reflect.TypeOf(payload), false, ""))
	schema.Title = p.Topic
	schema.Extensions = map[string]any{
		"$schema": dialect, extensionConsumed: len(p.Consumers) > 0, extensionPublished: len(p.Publishers) > 0,
	}

	var text bytes.Buffer

	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")

	if err := encoder.Encode(schema); err != nil {
		return nil, err
	}

	// The encoder leaves these, but people could not see them.
	return []byte(strings.NewReplacer("\x7f", `\u007f`, "\u009f", `\u009f`).Replace(text.String())), nil
}

// timeSchema is the schema of an event.Time: what is written, and then what is also read.
type timeSchema struct{}

// Schema implements huma.SchemaProvider.
func (timeSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{AnyOf: []*huma.Schema{
		{Type: huma.TypeString, Format: "date-time"},
		{Type: huma.TypeString, Pattern: event.TimePattern, Description: "A form of ISO 8601; in UTC without a zone."},
		{Type: huma.TypeNumber, Description: "Seconds since 1970, or milliseconds from 100,000,000,000."},
	}}
}

// describer completes the schemas that huma derives from Go types by what the decoder does.
type describer struct {
	registry huma.Registry
	// read is set for a payload that is consumed, which may be spelled in more ways.
	read bool
}

// describe returns a schema without references.
func (d describer) describe(s *huma.Schema) *huma.Schema {
	if s.Ref != "" {
		inner := *d.registry.SchemaFromRef(s.Ref)
		if s.Description != "" {
			inner.Description = s.Description
		}

		return d.describe(&inner)
	}

	described := *s
	described.Nullable = false

	if additional, ok := s.AdditionalProperties.(*huma.Schema); ok {
		described.AdditionalProperties = d.describe(additional)
	} else {
		described.AdditionalProperties = nil // the decoder ignores unknown fields
	}

	if s.Items != nil {
		described.Items = d.describe(s.Items)
	}

	if len(s.AnyOf) > 0 && !d.read {
		described = *s.AnyOf[0]
		described.Description = s.Description
	}

	described.Properties = make(map[string]*huma.Schema, len(s.Properties))
	for name, property := range s.Properties {
		described.Properties[name] = d.property(property, slices.Contains(s.Required, name))
	}

	return &described
}

// property describes a field of an object. null is the same as no field, unless the field
// must not be empty: null is read as an empty string.
func (d describer) property(s *huma.Schema, required bool) *huma.Schema {
	kind := s.Format
	described := d.describe(s)
	refine(described, kind, required)

	if required || !d.read || described.MinLength != nil {
		return described
	}

	switch {
	case len(described.AnyOf) > 0:
		described.AnyOf = append(slices.Clone(described.AnyOf), &huma.Schema{Type: "null"})
	case described.Type != "":
		described.Nullable = true
		if described.Enum != nil {
			described.Enum = append(slices.Clone(described.Enum), nil)
		}
	}

	return described
}

// Formats in the tags of payloads. They stand for what the checks of package event, and
// those of the domains, accept.
const (
	formatID       = "id"
	formatName     = "name"
	formatText     = "text"
	formatAddress  = "address"
	formatCurrency = "currency"
	formatObject   = "object"
)

// refine replaces a format of ours with keywords of JSON Schema.
func refine(s *huma.Schema, format string, required bool) {
	one := 1

	switch format {
	case formatID:
		s.Pattern, s.MaxLength = `^[^`+control+`]*$`, new(event.MaxID)
	case formatName, formatAddress:
		s.Pattern = `^[^` + control + `]*$`
	case formatText:
		s.Pattern = "^[^\x00]*$"
	case formatCurrency:
		s.Pattern, s.MinLength, s.MaxLength = `^[A-Z]{3}$`, new(3), new(3)
	case formatObject:
		s.Type = huma.TypeObject
	default:
		return
	}

	if format == formatAddress {
		s.Pattern = `^[^` + control + `]+@[^` + control + `]+$`
	}

	if required && s.MinLength == nil && format != formatText {
		s.MinLength = &one
	}

	s.Format = ""
}

// control are the characters that neither an ID nor a name may contain, for a class in a
// regular expression. They are literal, because not every dialect has escapes for them.
const control = "\x00-\x1f\x7f-\u009f\u2028\u2029"

// decodeSchema returns a schema as nested maps.
func decodeSchema(text []byte) (schema map[string]any, err error) {
	if err := json.Unmarshal(text, &schema); err != nil {
		return nil, fmt.Errorf("is not a JSON Schema: %w", err)
	}

	return schema, nil
}

// fileName returns the name of the file with the schema of a topic.
func fileName(topic string) string { return strings.ReplaceAll(topic, "/", "_") + ".json" }
