package app_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/test/apptest"
)

// description is the part of the API's description that names its inputs.
type description struct {
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]schema }
}

type operation struct {
	Parameters []struct {
		Name, In string
		Required bool
		Schema   schema
	}
	RequestBody struct {
		Content map[string]struct{ Schema schema }
	}
}

type schema struct {
	Ref        string `json:"$ref"`
	Enum       []string
	Required   []string
	Properties map[string]schema
}

// input is a request with an odd value at a place such as query.key.
type input struct {
	method, path, body string
	headers            http.Header
	place              string
}

// inputs returns a request for each input of each operation, with value in that input.
func (d description) inputs(value string) []input {
	var all []input

	for path, methods := range d.Paths {
		for method, operation := range methods {
			method := strings.ToUpper(method)

			for _, p := range operation.Parameters {
				if p.In == "header" && (strings.HasPrefix(p.Name, "If-") || strings.Contains(value, "\x00")) {
					continue // not stored; cannot be sent
				}

				target, headers := operation.target(path, p.In+"."+p.Name, value)
				all = append(all, input{method, target, "{}", headers, p.In + "." + p.Name})
			}

			target, headers := operation.target(path, "", "")

			for _, content := range operation.RequestBody.Content {
				for _, body := range d.bodies(content.Schema, value) {
					all = append(all, input{method, target, body, headers, "body"})
				}
			}
		}
	}

	return all
}

// target returns the path, query and headers with value at one place.
func (o operation) target(path, place, value string) (string, http.Header) {
	query, headers := url.Values{}, http.Header{}

	for _, p := range o.Parameters {
		text := "1"

		switch {
		case p.In+"."+p.Name == place:
			text = value
		case !p.Required:
			continue
		case len(p.Schema.Enum) > 0:
			text = p.Schema.Enum[0]
		}

		switch p.In {
		case "path":
			path = strings.Replace(path, "{"+p.Name+"}", url.PathEscape(text), 1)
		case "query":
			query.Set(p.Name, text)
		case "header":
			headers.Set(p.Name, text)
		}
	}

	return path + "?" + query.Encode(), headers
}

// bodies returns an object for each string of a schema, with value in that string.
func (d description) bodies(s schema, value string) []string {
	if s.Ref != "" {
		s = d.Components.Schemas[s.Ref[strings.LastIndex(s.Ref, "/")+1:]]
	}

	var all []string

	for name := range s.Properties {
		object := map[string]any{}
		for _, required := range s.Required {
			object[required] = "x"
		}

		object[name] = value
		data, _ := json.Marshal(object)
		all = append(all, string(data))
	}

	return all
}

// Text that Postgres cannot store does not reach it from any input of the API.
func TestTheAPIRefusesWhatCannotBeStored(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.ExpectFailures()
	stopSome(t, s)

	_, text, _ := ask(t, s, "/openapi.json")

	var d description
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}

	send := func(in input) (int, string) {
		t.Helper()

		in.headers.Set("Content-Type", "application/json")

		return fetch(t, s, in.method, "/api/v1"+in.path, in.body, in.headers)
	}

	encoded := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	refused := []string{"\x00", "a\x00b", "\xff", "\xed\xa0\x80"}
	odd := []string{
		"\u009b\u202e", "a\u2028b", "\ufeff", "\U0001FFFD", "%00", `\u0000`, "'; --", "nonsense", strings.Repeat("x", 3000),
		encoded("\x00"), encoded("\xff"), encoded(`"a\x00b"`), encoded(`"a\u0000"`), encoded("1 \x00"), encoded("12abc"), encoded("99999999999999999999"), encoded(`"`), encoded("1 2 3"),
	}

	count := 0

	for _, value := range slices.Concat(refused, odd) {
		for _, in := range d.inputs(value) {
			count++

			status, answer := send(in)
			if status >= 500 || strings.Contains(answer, "SQLSTATE") {
				t.Errorf("%s %s %s: %d %s", in.method, in.path, in.body, status, answer)
			}

			if in.place != "body" && slices.Contains(refused, value) && (status != 422 || !strings.Contains(answer, "U+0000") && !strings.Contains(answer, "not UTF-8")) {
				t.Errorf("%s %s: got %d, expected 422: %s", in.method, in.path, status, answer)
			}
		}
	}

	if count < 1000 {
		t.Errorf("only %d requests were sent", count)
	}

	for _, cursor := range []string{"nonsense", encoded("\x00"), encoded(`"a\x00b"`), encoded("12abc"), encoded("1 2 3"), encoded("99999999999999999999")} {
		for _, list := range []string{"/failed", "/failed/groups", "/events", "/activity", "/stock"} {
			if status, answer := send(input{method: "GET", path: list + "?cursor=" + cursor, headers: http.Header{}}); status != 422 || !strings.Contains(answer, "is not a cursor") {
				t.Errorf("%s?cursor=%s: got %d, expected 422: %s", list, cursor, status, answer)
			}
		}
	}
}
