package asyncapi

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Write stores the schemas of payloads in dir, one file per topic. It refuses, and writes
// nothing, if one breaks those who use the schema that is there; see Breaks.
func Write(dir string, payloads []Payload) error {
	if err := incompatible(dir, payloads); err != nil {
		return err
	}

	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("writing schemas: %w", err)
	}

	for _, p := range payloads {
		if err := os.WriteFile(filepath.Join(dir, fileName(p.Topic)), p.Schema, 0o600); err != nil {
			return fmt.Errorf("writing the schema of %s: %w", p.Topic, err)
		}
	}

	return nil
}

// Check returns an error unless dir holds the schemas of payloads.
func Check(dir string, payloads []Payload) error {
	if err := incompatible(dir, payloads); err != nil {
		return err
	}

	var errs []error

	for _, p := range payloads {
		released, err := os.ReadFile(filepath.Join(dir, fileName(p.Topic)))
		if err != nil || !bytes.Equal(released, p.Schema) {
			errs = append(errs, fmt.Errorf("%s: has changed compatibly: run make generate, and commit %s", p.Topic, filepath.Join(dir, fileName(p.Topic))))
		}
	}

	return errors.Join(errs...)
}

// incompatible returns a Conflict error that lists the changes that break users of the
// schemas in dir.
func incompatible(dir string, payloads []Payload) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return fmt.Errorf("listing schemas: %w", err)
	}

	current := map[string]Payload{}
	for _, p := range payloads {
		current[fileName(p.Topic)] = p
	}

	var breaks []string

	for _, file := range files {
		released, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}

		if err != nil {
			return fmt.Errorf("reading a schema: %w", err)
		}

		name := filepath.Base(file)

		p, exists := current[name]
		if !exists {
			breaks = append(breaks, strings.TrimSuffix(name, ".json")+": the topic is no longer in the routing table")

			continue
		}

		found, err := Breaks(released, p.Schema)
		if err != nil {
			return fmt.Errorf("comparing %s: %w", file, err)
		}

		for _, b := range found {
			breaks = append(breaks, p.Topic+": "+b)
		}
	}

	if breaks == nil {
		return nil
	}

	return event.Errorf(event.Conflict, "incompatible with the schemas in %s:\n  %s\n"+
		"Undo this, or leave the payload as it is and add a type with a topic of its own, such as orders.created.v2. "+
		"If nobody uses the topic yet, delete its file in %[1]s and run make generate", dir, strings.Join(breaks, "\n  "))
}

// Breaks returns the changes from one schema to the next that break users of the topic,
// each with the path of its field. What a consumed topic accepted must stay accepted, and
// whoever reads a published topic must find what they found before.
func Breaks(released, current []byte) ([]string, error) {
	before, err := decodeSchema(released)
	if err != nil {
		return nil, err
	}

	after, err := decodeSchema(current)
	if err != nil {
		return nil, err
	}

	c := comparison{}

	if before[extensionConsumed] == true {
		c.read(after[extensionConsumed] == true, "consumed")
		c.compare("", before, after, accepts)
	}

	if before[extensionPublished] == true {
		c.read(after[extensionPublished] == true, "published")
		c.compare("", before, after, emits)
	}

	slices.Sort(c.breaks)

	return slices.Compact(c.breaks), nil
}

// side is the side of a topic that a comparison protects.
type side bool

const (
	accepts side = true  // producers, whose messages must stay acceptable
	emits   side = false // readers, who rely on what a message has
)

type comparison struct{ breaks []string }

func (c *comparison) read(still bool, what string) {
	if !still {
		c.breaks = append(c.breaks, "payload: is no longer "+what)
	}
}

func (c *comparison) addf(path, format string, args ...any) {
	if path == "" {
		path = "payload"
	}

	c.breaks = append(c.breaks, path+": "+fmt.Sprintf(format, args...))
}

// compare adds what breaks at path and below.
func (c *comparison) compare(path string, before, after map[string]any, s side) {
	if before["anyOf"] != nil || after["anyOf"] != nil {
		c.alternatives(path, before, after, s)

		return
	}

	c.types(path, before, after, s)
	c.enum(path, before, after, s)
	c.bounds(path, before, after, s)
	c.exact(path, before, after, s)
	c.fields(path, before, after, s)

	if items, ok := before["items"].(map[string]any); ok {
		if now, ok := after["items"].(map[string]any); ok {
			c.compare(path+"[]", items, now, s)
		}
	}
}

// alternatives compares values of which there are several forms: for each form that was
// accepted there must be one that accepts it, and for each form that is now emitted one
// that was emitted.
func (c *comparison) alternatives(path string, before, after map[string]any, s side) {
	needed, offered := forms(before), forms(after)
	if s == emits {
		needed, offered = offered, needed
	}

	for _, need := range needed {
		fits := slices.ContainsFunc(offered, func(offer map[string]any) bool {
			trial := comparison{}
			if s == accepts {
				trial.compare("", need, offer, s)
			} else {
				trial.compare("", offer, need, s)
			}

			return trial.breaks == nil
		})

		switch {
		case fits:
		case s == accepts:
			c.addf(path, "no longer accepts a %s as it did", strings.Join(typesOf(need), " or "))
		default:
			c.addf(path, "may now be a %s that readers do not know", strings.Join(typesOf(need), " or "))
		}
	}
}

// forms returns the alternatives of a schema.
func forms(schema map[string]any) []map[string]any {
	list, ok := schema["anyOf"].([]any)
	if !ok {
		return []map[string]any{schema}
	}

	var forms []map[string]any

	for _, form := range list {
		if form, ok := form.(map[string]any); ok {
			forms = append(forms, form)
		}
	}

	return forms
}

var allTypes = []string{"array", "boolean", "integer", "null", "number", "object", "string"}

// typesOf returns the types that a schema allows.
func typesOf(schema map[string]any) []string {
	switch t := schema["type"].(type) {
	case string:
		return []string{t}
	case []any:
		var types []string
		for _, name := range t {
			types = append(types, fmt.Sprint(name))
		}

		return types
	default:
		return allTypes
	}
}

func (c *comparison) types(path string, before, after map[string]any, s side) {
	was, is := typesOf(before), typesOf(after)

	for _, t := range was {
		if s == accepts && !slices.Contains(is, t) && (t != "integer" || !slices.Contains(is, "number")) {
			c.addf(path, "no longer accepts %s, only %s", t, strings.Join(is, " or "))
		}
	}

	for _, t := range is {
		if s == emits && !slices.Contains(was, t) && (t != "integer" || !slices.Contains(was, "number")) {
			c.addf(path, "may now be %s, and was %s", t, strings.Join(was, " or "))
		}
	}
}

func (c *comparison) enum(path string, before, after map[string]any, s side) {
	was, limited := before["enum"].([]any)
	is, limits := after["enum"].([]any)

	switch {
	case s == accepts && limits && !limited:
		c.addf(path, "accepts only %v now", is)
	case s == emits && limited && !limits:
		c.addf(path, "may now be other than %v", was)
	case s == accepts && limits:
		for _, value := range was {
			if !slices.Contains(is, value) {
				c.addf(path, "no longer accepts %v", value)
			}
		}
	case s == emits && limited:
		for _, value := range is {
			if !slices.Contains(was, value) {
				c.addf(path, "may now be %v, which readers do not know", value)
			}
		}
	}
}

// Keywords that limit a value from below and from above.
var (
	lower = []string{"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
	upper = []string{"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
)

func (c *comparison) bounds(path string, before, after map[string]any, s side) {
	for _, keyword := range slices.Concat(lower, upper) {
		was, limited := before[keyword].(float64)
		is, limits := after[keyword].(float64)
		narrower, wider := limits && (!limited || is > was), limited && (!limits || is < was)

		if slices.Contains(upper, keyword) {
			narrower, wider = limits && (!limited || is < was), limited && (!limits || is > was)
		}

		switch {
		case s == accepts && narrower:
			c.addf(path, "%s is %v now, and was %s", keyword, is, orNone(was, limited))
		case s == emits && wider:
			c.addf(path, "%s was %v, and is %s now", keyword, was, orNone(is, limits))
		}
	}
}

func orNone(value float64, is bool) string {
	if !is {
		return "not limited"
	}

	return fmt.Sprint(value)
}

// exact compares keywords of which nobody can tell whether another value allows more or
// less.
func (c *comparison) exact(path string, before, after map[string]any, s side) {
	for _, keyword := range []string{"pattern", "format", "multipleOf", "const", "contentEncoding", "additionalProperties", "oneOf", "allOf", "not"} {
		was, is := before[keyword], after[keyword]
		if reflect.DeepEqual(was, is) {
			continue
		}

		if s == accepts && is != nil || s == emits && was != nil {
			c.addf(path, "%s has changed", keyword)
		}
	}
}

// fields compares the fields of an object.
func (c *comparison) fields(path string, before, after map[string]any, s side) {
	was, _ := before["properties"].(map[string]any)
	is, _ := after["properties"].(map[string]any)

	for _, name := range slices.Sorted(maps.Keys(was)) {
		field := strings.TrimPrefix(path+"."+name, ".")
		needed, needs := required(before, name), required(after, name)

		old, _ := was[name].(map[string]any)

		now, exists := is[name].(map[string]any)
		if !exists {
			c.addf(field, "is removed")

			continue
		}

		switch {
		case s == accepts && needs && !needed:
			c.addf(field, "is required now")
		case s == emits && needed && !needs:
			c.addf(field, "may now be missing")
		}

		c.compare(field, old, now, s)
	}

	for _, name := range slices.Sorted(maps.Keys(is)) {
		if _, known := was[name]; !known && s == accepts && required(after, name) {
			c.addf(strings.TrimPrefix(path+"."+name, "."), "is new and required, but producers do not send it")
		}
	}
}

func required(schema map[string]any, name string) bool {
	list, _ := schema["required"].([]any)

	return slices.Contains(list, any(name))
}
