package asyncapi_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/engine/asyncapi"
	"github.com/millracehq/millrace/internal/engine/event"
)

const note = `{"type":"object","required":["id","text"],"properties":{
	"id":{"type":"string","minLength":1,"maxLength":200},
	"text":{"type":"string","enum":["a","b"]},
	"size":{"type":"integer","minimum":1},
	"cost":{"anyOf":[{"type":"number"},{"type":"string"}]},
	"tags":{"type":"array","items":{"type":"object","properties":{"name":{"type":"string"}}}}}}`

// with returns the schema after replacing a part, for a topic that is consumed, published
// or both.
func with(t *testing.T, users, old, replacement string) []byte {
	t.Helper()

	if !strings.Contains(note, old) {
		t.Fatalf("the schema has no %s", old)
	}

	var schema map[string]any
	if err := json.Unmarshal([]byte(strings.Replace(note, old, replacement, 1)), &schema); err != nil {
		t.Fatal(err)
	}

	schema["x-consumed"] = strings.Contains(users, "consumed")
	schema["x-published"] = strings.Contains(users, "published")

	text, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}

	return text
}

func TestChangesThatBreakSomebodyAreNamed(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ old, replacement, consumed, published string }{
		{`"type":"object"`, `"title":"Note","type":"object"`, "", ""},
		{`"tags":{`, `"more":{"type":"string"},"tags":{`, "", ""},
		{`"required":["id","text"]`, `"required":["id","text","more"]`, "", ""},
		{`"required":["id","text"]`, `"required":["id","text","size"]`, "size: is required now", ""},
		{`"required":["id","text"]`, `"required":["id"]`, "", "text: may now be missing"},
		{`"size":{"type":"integer","minimum":1},`, ``, "size: is removed", "size: is removed"},
		{`"name":{"type":"string"}`, ``, "tags[].name: is removed", "tags[].name: is removed"},
		{`"enum":["a","b"]`, `"enum":["a"]`, "text: no longer accepts b", ""},
		{`"enum":["a","b"]`, `"enum":["a","b","c"]`, "", "text: may now be c, which readers do not know"},
		{`,"enum":["a","b"]`, ``, "", "text: may now be other than [a b]"},
		{`"minimum":1`, `"minimum":2`, "size: minimum is 2 now, and was 1", ""},
		{`"minimum":1`, `"minimum":0`, "", "size: minimum was 1, and is 0 now"},
		{`"maxLength":200`, `"maxLength":100`, "id: maxLength is 100 now, and was 200", ""},
		{`,"maxLength":200`, ``, "", "id: maxLength was 200, and is not limited now"},
		{`"type":"integer"`, `"type":"number"`, "", "size: may now be number, and was integer"},
		{`"type":"integer"`, `"type":"string"`, "size: no longer accepts integer, only string", "size: may now be string, and was integer"},
		{`"name":{"type":"string"}`, `"name":{"type":"string","pattern":"^a"}`, "tags[].name: pattern has changed", ""},
		{`"anyOf":[{"type":"number"},{"type":"string"}]`, `"type":"number"`, "cost: no longer accepts a string as it did", ""},
		{`"anyOf":[{"type":"number"},{"type":"string"}]`, `"anyOf":[{"type":"number"},{"type":"string"},{"type":"null"}]`, "", "cost: may now be a null that readers do not know"},
	} {
		for users, want := range map[string]string{"consumed": c.consumed, "published": c.published} {
			found, err := asyncapi.Breaks(with(t, users, "", ""), with(t, users, c.old, c.replacement))
			if got := strings.Join(found, "; "); err != nil || got != want {
				t.Errorf("%s instead of %s in what is %s: got %q, %v; expected %q", c.replacement, c.old, users, got, err, want)
			}
		}
	}
}

func TestATopicKeepsItsUsers(t *testing.T) {
	t.Parallel()

	found, err := asyncapi.Breaks(with(t, "consumed, published", "", ""), with(t, "published", "", ""))
	if diff := cmp.Diff([]string{"payload: is no longer consumed"}, found); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestSchemasAreReplacedOnlyByCompatibleOnes(t *testing.T) {
	t.Parallel()

	dir := filepath.Join(t.TempDir(), "schemas")
	payload := func(old, replacement string) []asyncapi.Payload {
		return []asyncapi.Payload{{Topic: "notes", Schema: with(t, "consumed", old, replacement)}}
	}

	if err := asyncapi.Check(dir, payload("", "")); err == nil || !strings.Contains(err.Error(), "notes: has changed compatibly: run make generate") {
		t.Errorf("got %v", err)
	}

	if err := asyncapi.Write(dir, payload("", "")); err != nil {
		t.Fatal(err)
	}

	if err := asyncapi.Check(dir, payload("", "")); err != nil {
		t.Error(err)
	}

	additive := payload(`"tags":{`, `"more":{"type":"string"},"tags":{`)
	if err := asyncapi.Check(dir, additive); err == nil || !strings.Contains(err.Error(), "run make generate") {
		t.Errorf("got %v", err)
	}

	if err := asyncapi.Write(dir, additive); err != nil {
		t.Fatal(err)
	}

	before, err := os.ReadFile(filepath.Join(dir, "notes.json"))
	if err != nil {
		t.Fatal(err)
	}

	// The required field text is removed.
	broken := payload(`"required":["id","text"]`, `"required":["id"]`)
	broken[0].Schema = []byte(strings.Replace(string(broken[0].Schema), `"text":{"enum":["a","b"],"type":"string"}`, `"other":{}`, 1))

	for name, gate := range map[string]func(string, []asyncapi.Payload) error{"Check": asyncapi.Check, "Write": asyncapi.Write} {
		err := gate(dir, broken)
		if event.KindOf(err) != event.Conflict || !strings.Contains(err.Error(), "notes: text: is removed") || !strings.Contains(err.Error(), "add a type with a topic of its own") {
			t.Errorf("%s: got %v", name, err)
		}
	}

	if after, err := os.ReadFile(filepath.Join(dir, "notes.json")); err != nil || string(after) != string(before) {
		t.Errorf("the schema was overwritten: %s, %v", after, err)
	}

	if err := asyncapi.Check(dir, nil); err == nil || !strings.Contains(err.Error(), "notes: the topic is no longer in the routing table") {
		t.Errorf("got %v", err)
	}
}
