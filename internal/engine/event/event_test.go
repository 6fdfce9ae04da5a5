package event_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
)

type thing struct {
	ID    string `json:"id"`
	Count int64  `json:"count"`
	Parts []struct {
		Name string `json:"name"`
	} `json:"parts"`
}

func (thing) Topic() string { return "things" }
func (t thing) Key() string { return t.ID }

func (t thing) Validate() error {
	if t.ID == "" {
		return errors.Join(errors.New("id: is missing"), errors.New("count: is odd"))
	}

	return nil
}

func TestDecodeErrorsNameTheFieldAndTheMistake(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		payload string
		reason  event.Reason
		says    string
	}{
		"empty":              {"", event.ReasonMalformed, "payload: is empty"},
		"not JSON":           {"nonsense", event.ReasonMalformed, "payload: not valid JSON"},
		"cut off":            {`{"id":"a"`, event.ReasonMalformed, "not valid JSON at byte 9"},
		"two values":         {`{"id":"a"}{}`, event.ReasonMalformed, "not valid JSON"},
		"not an object":      {`[]`, event.ReasonMalformed, "payload: is a JSON array, expected an object"},
		"wrong type":         {`{"id":5}`, event.ReasonMalformed, "id: is a JSON number, expected a string"},
		"wrong type, deeper": {`{"id":"a","parts":[{"name":"x"},{"name":[]}]}`, event.ReasonMalformed, "parts[1].name: is a JSON array, expected a string"},
		"huge number":        {`{"id":"a","count":1e40}`, event.ReasonMalformed, "count: "},
		"fraction":           {`{"id":"a","count":1.5}`, event.ReasonMalformed, "count: is 1.5, expected a whole number"},
		"NaN":                {`{"id":"a","count":NaN}`, event.ReasonMalformed, "count: not valid JSON"},
		"name twice":         {`{"id":"a","id":"b"}`, event.ReasonMalformed, "id: not valid JSON"},
		"name twice, deeper": {`{"id":"a","extra":{"b":1,"b":2}}`, event.ReasonMalformed, "extra.b: not valid JSON"},
		"odd name":           {"{\"id\":\"a\",\"x\\u001b[31m\\n\":{\"b\":1,\"b\":2}}", event.ReasonMalformed, `["x\x1b[31m\n"].b: not valid JSON`},
		"half a surrogate":   {`{"id":"\ud83d"}`, event.ReasonMalformed, "id: not valid JSON"},
		"surrogates swapped": {`{"id":"\ude00\ud83d"}`, event.ReasonMalformed, "id: not valid JSON"},
		"raw control":        {"{\"id\":\"a\tb\"}", event.ReasonMalformed, "id: not valid JSON"},
		"two marks":          {"\ufeff\ufeff{\"id\":\"a\"}", event.ReasonMalformed, "payload: not valid JSON"},
		"UTF-16":             {"\xff\xfe{\x00}\x00", event.ReasonMalformed, "payload: not valid JSON"},
		"single quotes":      {`{'id':'a'}`, event.ReasonMalformed, "not valid JSON"},
		"trailing comma":     {`{"id":"a",}`, event.ReasonMalformed, "not valid JSON"},
		"not UTF-8":          {"{\"id\":\"\xff\"}", event.ReasonMalformed, "id: not valid JSON"},
		"too deep":           {strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), event.ReasonMalformed, "nests deeper than 64"},
		"too large":          {`{"id":"` + strings.Repeat("a", 2<<20) + `"}`, event.ReasonTooLarge, "expected at most 1048576"},
		"invalid":            {`{}`, event.ReasonInvalid, "id: is missing; count: is odd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			_, err := event.Decode[thing]([]byte(c.payload))

			var rejection *event.RejectError
			if !errors.As(err, &rejection) {
				t.Fatalf("got %v, expected a rejection", err)
			}

			if rejection.Reason != c.reason || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %s: %v, expected %s with %q", rejection.Reason, err, c.reason, c.says)
			}
		})
	}
}

func TestDecodeIgnoresUnknownFieldsAndBracketsInStrings(t *testing.T) {
	t.Parallel()

	got, err := event.Decode[thing]([]byte(`{"id":"` + strings.Repeat("[", 100) + `\"","extra":{"a":[1]}}`))
	if err != nil || got.ID != strings.Repeat("[", 100)+`"` {
		t.Fatalf("got %v, %v", got, err)
	}
}

// Producers and editors add these oddities to valid JSON.
func TestDecodeTakesHarmlessOddities(t *testing.T) {
	t.Parallel()

	for name, payload := range map[string]string{
		"a byte order mark":       "\ufeff{\"id\":\"a\"}",
		"white space":             " \r\n\t{\"id\" : \"a\"}\r\n",
		"an escaped slash":        `{"id":"\u0061","url":"http:\/\/x"}`,
		"a line separator":        "{\"id\":\"a\",\"text\":\"one\u2028two\"}",
		"a pair of surrogates":    `{"id":"a","text":"\ud83d\ude00"}`,
		"NUL in an unknown field": `{"id":"a","text":"\u0000"}`,
		"a name in another case":  `{"id":"a","ID":"b"}`,
	} {
		if got, err := event.Decode[thing]([]byte(payload)); err != nil || got.ID != "a" {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func TestAKeyThatCannotBeStoredIsNotSent(t *testing.T) {
	t.Parallel()

	for key, says := range map[string]string{"a\x00": "encoding payload of things: its key contains the character U+0000", "\xff": "its key is not UTF-8", "\u202e": ""} {
		_, err := event.Encode(thing{ID: key})
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, expected %q", key, err, says)
		}

		if err := (event.Message{Key: key}).Check(); (err == nil) != (says == "") {
			t.Errorf("%q: got %v", key, err)
		}
	}
}

func TestHeadersSurviveJSONByteForByte(t *testing.T) {
	t.Parallel()

	headers := event.Headers{"plain": "text", "empty": "", "unicode": "grün", "binary": "\x00\xff\xfe", "quote": `"\`}

	data, err := json.Marshal(headers)
	if err != nil {
		t.Fatal(err)
	}

	var back event.Headers
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}

	if diff := cmp.Diff(headers, back); diff != "" {
		t.Error(diff)
	}
}

func TestForeignMessagesGetAStableID(t *testing.T) {
	t.Parallel()

	const own = "01890a5d-ac96-774b-bcce-b302099a8057"

	identify := func(h event.Headers, native, coordinates string) uuid.UUID {
		return event.IdentifyMessage(h, event.NativeID{ID: native}, coordinates)
	}

	if got := identify(event.Headers{event.HeaderWatermillID: own, event.HeaderID: "other"}, "x", "y"); got.String() != own {
		t.Errorf("watermill's header: got %s", got)
	}

	cloud := event.Headers{event.HeaderID: "1", event.HeaderSource: "shop"}
	if identify(cloud, "", "a") != identify(cloud, "n", "b") {
		t.Error("a CloudEvents ID depends on more than id and source")
	}

	if identify(cloud, "", "") == identify(event.Headers{event.HeaderID: "1", event.HeaderSource: "till"}, "", "") {
		t.Error("two sources share a CloudEvents ID")
	}

	if identify(nil, "n-1", "a") != identify(nil, "n-1", "b") || identify(nil, own, "").String() != own {
		t.Error("the native ID was not kept")
	}

	first, again := identify(nil, "", "kafka:t/0@1"), identify(nil, "", "kafka:t/0@1")
	if first != again || first == identify(nil, "", "kafka:t/0@2") {
		t.Error("coordinates do not identify the message")
	}

	if one, other := identify(nil, "", ""), identify(nil, "", ""); one == other {
		t.Error("messages without any identity share an ID")
	}

	if identify(event.Headers{event.HeaderWatermillID: "{" + own + "}"}, "", "").Version() != 5 {
		t.Error("a non-canonical UUID was taken for the canonical one")
	}
}

func TestFollowingEventsKeepTheConversation(t *testing.T) {
	t.Parallel()

	first := event.Start(thing{ID: "a"})
	second := event.Event[thing]{Meta: first.Meta}.Then(thing{ID: "b"})

	if first.Correlation != first.ID || first.Causation != uuid.Nil {
		t.Errorf("the first message is %+v", first.Meta)
	}

	if second.Correlation != first.ID || second.Causation != first.ID || second.ID == first.ID {
		t.Errorf("the second message is %+v after %+v", second.Meta, first.Meta)
	}

	if seconds, _ := second.ID.Time().UnixTime(); time.Since(time.Unix(seconds, 0)) > time.Minute {
		t.Errorf("the ID has the time %d", seconds)
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"id":"a","count":1,"parts":[{"name":"x"}]}`, `[[[`, `{"id":"\ud800"}`, `{"id":null}`, "\x00"} {
		f.Add([]byte(seed))
	}

	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := event.Decode[thing](data)

		var rejection *event.RejectError
		if err != nil && (!errors.As(err, &rejection) || err.Error() == "") {
			t.Errorf("not a rejection with a message: %v", err)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("name", "value")
	f.Add("\xff", "\x00")

	f.Fuzz(func(t *testing.T, name, value string) {
		data, err := event.Headers{name: value}.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}

		var back event.Headers
		if err := back.UnmarshalJSON(data); err != nil {
			t.Fatal(err)
		}

		for _, got := range back {
			if got != value {
				t.Errorf("%q came back as %q", value, got)
			}
		}
	})
}
