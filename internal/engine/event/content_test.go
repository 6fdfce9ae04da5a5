package event_test

import (
	"encoding/json"
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
)

func TestContentIsTextIfItCanBe(t *testing.T) {
	t.Parallel()

	for content, want := range map[string]string{
		"":                       `{"text":""}`,
		`{"id":"Zoë"}`:           `{"text":"{\"id\":\"Zoë\"}"}`,
		"not JSON\x00":           `{"text":"not JSON\u0000"}`,
		"\xff\xfe":               `{"base64":"//4="}`,
		"text, and then\xc3\x28": `{"base64":"dGV4dCwgYW5kIHRoZW7DKA=="}`,
	} {
		got, err := json.Marshal(event.Content(content))
		if err != nil || string(got) != want {
			t.Errorf("%q: got %s, %v, expected %s", content, got, err, want)
		}

		var back event.Content
		if err := json.Unmarshal(got, &back); err != nil || string(back) != content || back == nil {
			t.Errorf("%q: read back %q, %v", content, back, err)
		}
	}

	if got, err := json.Marshal(struct{ Edited event.Content }{}); err != nil || string(got) != `{"Edited":null}` {
		t.Errorf("got %s, %v", got, err)
	}
}
