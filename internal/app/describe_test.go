package app_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/millracehq/millrace"
	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/asyncapi"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/user"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestExamplesOfPayloadsAreWhatIsPublished(t *testing.T) {
	t.Parallel()

	message := notification.Message{UserID: "user_1", Content: "Hello!"}

	for name, payload := range map[string]event.Payload{
		"user.profile.updated.v1":  account.ProfileUpdated{UserID: "user_1", Changes: user.Properties{"city": json.RawMessage(`"Berlin"`)}},
		"notifications.email.v1":   notification.EmailDue{Message: message},
		"notifications.webhook.v1": notification.WebhookDue{Message: message, At: event.Time{Time: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}},
		"notifications.log.v1":     notification.LogDue{Message: message},
	} {
		data, err := event.Encode(payload)
		if err != nil {
			t.Fatal(err)
		}

		var pretty bytes.Buffer
		if err := json.Indent(&pretty, data, "", "  "); err != nil {
			t.Fatal(err)
		}

		path := filepath.Join("testdata", "events", name+".json")
		if *update {
			if err := os.WriteFile(path, []byte(pretty.String()+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}

		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v: run the test with -update", err)
		}

		if diff := cmp.Diff(string(want), pretty.String()+"\n"); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// schemas compiles the schema of each topic.
func schemas(t *testing.T, s *app.Service) map[string]*jsonschema.Schema {
	t.Helper()

	payloads, err := asyncapi.Payloads(s.Router)
	if err != nil {
		t.Fatal(err)
	}

	compiled := map[string]*jsonschema.Schema{}

	for _, p := range payloads {
		decoded, err := jsonschema.UnmarshalJSON(bytes.NewReader(p.Schema))
		if err != nil {
			t.Fatal(err)
		}

		compiler := jsonschema.NewCompiler()
		compiler.AssertFormat()

		if err := compiler.AddResource(p.Topic, decoded); err != nil {
			t.Fatal(err)
		}

		if compiled[p.Topic], err = compiler.Compile(p.Topic); err != nil {
			t.Fatal(err)
		}
	}

	return compiled
}

func valid(t *testing.T, schema *jsonschema.Schema, payload string) error {
	t.Helper()

	decoded, err := jsonschema.UnmarshalJSON(strings.NewReader(payload))
	if err != nil {
		t.Fatalf("%s: %v", payload, err)
	}

	return schema.Validate(decoded)
}

func TestEveryTopicHasAnExampleThatItsSchemaAccepts(t *testing.T) {
	t.Parallel()

	s := unconnected(t)
	document, err := s.Describe()
	if err != nil {
		t.Fatal(err)
	}

	for topic, schema := range schemas(t, s) {
		examples := document.Components.Messages[topic].Examples
		if len(examples) == 0 {
			t.Errorf("%s: has no example: add it to internal/app/testdata/events", topic)
		}

		for _, e := range examples {
			if err := valid(t, schema, string(e.Payload)); err != nil {
				t.Errorf("%s: %v", e.Name, err)
			}
		}
	}
}

// What a consumer accepts its schema accepts too, and what a schema can express it refuses
// as the consumer does.
func TestSchemasAgreeWithTheConsumers(t *testing.T) {
	t.Parallel()

	s := unconnected(t)
	compiled := schemas(t, s)

	for _, c := range []struct{ topic, accepted, refused string }{
		{"orders.created",
			`{"order":{"id":"o","product_id":"p","quantity":2.0,"total_amount":"1.5","unknown":1}}
			{"order":{"id":"o","product_id":null,"quantity":null,"items":[{"product_id":"p","quantity":1}],"total_amount":1e2,"currency":"EUR"}}
			{"order":{"id":"o","product_id":"p","quantity":1,"items":[],"total_amount":".5"}}
			{"order":{"id":"o","product_id":"p","quantity":1,"items":null,"total_amount":"+5."}}
			{"order":{"id":"ä ö/🙂","product_id":"p","quantity":1000000000,"total_amount":0},"x":{}}`,
			`{}
			{"order":null}
			[]
			{"order":{"product_id":"p","quantity":1,"total_amount":1}}
			{"order":{"id":"","product_id":"p","quantity":1,"total_amount":1}}
			{"order":{"id":"a\nb","product_id":"p","quantity":1,"total_amount":1}}
			{"order":{"id":"o","product_id":"p","total_amount":1}}
			{"order":{"id":"o","quantity":1,"total_amount":1}}
			{"order":{"id":"o","product_id":"","quantity":1,"total_amount":1}}
			{"order":{"id":"o","product_id":"p","quantity":0,"total_amount":1}}
			{"order":{"id":"o","product_id":"p","quantity":1000000001,"total_amount":1}}
			{"order":{"id":"o","product_id":"p","quantity":1.5,"total_amount":1}}
			{"order":{"id":"o","product_id":"p","quantity":"1","total_amount":1}}
			{"order":{"id":"o","product_id":"p","quantity":1}}
			{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":null}}
			{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":-1}}
			{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1e18}}
			{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":"1,5"}}
			{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1,"currency":"usd"}}
			{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1,"currency":null}}
			{"order":{"id":"o","items":[{"product_id":"p"}],"total_amount":1}}
			{"order":{"id":"o","items":[null],"total_amount":1}}
			{"order":{"id":"o","product_id":"p","quantity":1,"items":[{"product_id":"p","quantity":1}],"total_amount":1}}`},
		{"payments.requested", `{"order_id":"o","amount":1,"attempt":null}`,
			`{"order_id":"o"}
			{"order_id":"o","amount":true}
			{"order_id":"o","amount":1,"attempt":1001}
			{"order_id":"o","amount":1,"attempt":-1}`},
		{"orders.cancel.requested", `{"order_id":"o","reason":"line\nline"}
			{"order_id":"o","reason":null}`,
			`{"order_id":5}
			{"order_id":"o","reason":"` + strings.Repeat("x", 501) + `"}
			{"order_id":"o","reason":"\u0000"}`},
		{"payments.refund.requested", `{"order_id":"o","transaction_id":"t","amount":1,"currency":"HRK"}`,
			`{"order_id":"o","amount":1,"currency":"USD"}
			{"order_id":"o","transaction_id":"t","amount":1}
			{"order_id":"o","transaction_id":"t","amount":1,"currency":"dollar"}`},
		{"payments.reported", `{"order_id":"o","outcome":"declined","amount":1,"currency":"USD","reason":"expired card"}`,
			`{"order_id":"o","outcome":"gone","amount":1,"currency":"USD","reason":"r"}
			{"order_id":"o","outcome":"declined","amount":1,"currency":"USD"}
			{"order_id":"o","outcome":"refunded","transaction_id":"t","amount":1,"currency":"USD"}
			{"order_id":"o","outcome":"captured","amount":1,"currency":"USD"}`},
		{"inventory.restocked", `{"product_id":"p","quantity":1e3}`, `{"product_id":"p"}
			{"quantity":1}`},
		{"user.created", `{"user":{"id":"u","name":"A\u3000B","email":"a@b.c","age":7,"tags":[1]}}`,
			`{"user":{"id":"u","name":"A"}}
			{"user":{"id":"u","name":"","email":"a@b.c"}}
			{"user":{"id":"u","name":"A\nB","email":"a@b.c"}}
			{"user":{"id":"u","name":"A","email":"nobody"}}`},
		{"user.updated", `{"user_id":"u","updates":{"name":"B"}}
			{"user_id":"u","updates":{"age":null}}
			{"user_id":"u","updates":{"name":null,"city":"x"}}`,
			`{"user_id":"u","updates":{}}
			{"user_id":"u"}
			{"user_id":"u","updates":{"name":7}}`},
		{"user.events", `{"user_id":"u","action":"update","name":"B"}
			{"userId":"u","userName":"B","userAction":"createUser","userEmail":"a@b.c","x":1}
			{"userId":"u","action":"Create_user","user":{"name":"B","email":"a@b.c"}}`,
			`{"user_id":"u"}
			{"action":"create"}
			{"user_id":"u","userId":"u","action":"update","name":"B"}
			{"user_id":"u","action":"update","name":"B","userName":"B"}
			{"user_id":"u","action":"delete"}
			{"user_id":null,"action":"update","name":"B"}
			{"user_id":"u","action":"update","updates":5}`},
		{"notifications", `{"user_id":"u","content":"Hi"}
			{"user_id":"u","content":"Hi","channel":null}`,
			`{"user_id":"u","content":""}
			{"user_id":"u","content":"Hi","channel":"fax"}`},
		{"notifications.webhook", `{"user_id":"u","content":"Hi","at":"2026-01-31 12:00"}`, `{"user_id":"u","content":"Hi"}
			{"user_id":"u","content":"Hi","at":"soon"}`},
		{"analytics.track", `{"event":"e","timestamp":1769860800}
			{"event":"e","timestamp":"2026-01-31","properties":{"a":1},"user_id":""}
			{"event":"e","timestamp":"2026-01-31T12:00:00+0100","properties":null,"user_id":null}`,
			`{"event":"e"}
			{"timestamp":1}
			{"event":"","timestamp":1}
			{"event":"e","timestamp":true}
			{"event":"e","timestamp":"31.1.2026"}
			{"event":"e","timestamp":1,"properties":[1]}`},
	} {
		for text := range strings.Lines(c.accepted) {
			if _, err := s.Operator.CheckPayload(c.topic, []byte(strings.TrimSpace(text))); err != nil {
				t.Errorf("%s: the consumer refuses %s: %v", c.topic, text, err)
			}

			if err := valid(t, compiled[c.topic], text); err != nil {
				t.Errorf("%s: the schema refuses %s: %v", c.topic, text, err)
			}
		}

		for text := range strings.Lines(c.refused) {
			if _, err := s.Operator.CheckPayload(c.topic, []byte(strings.TrimSpace(text))); err == nil {
				t.Errorf("%s: the consumer accepts %s", c.topic, text)
			}

			if err := valid(t, compiled[c.topic], text); err == nil {
				t.Errorf("%s: the schema accepts %s", c.topic, text)
			}
		}
	}
}

func TestTheReleasedSchemasAreStillValid(t *testing.T) {
	t.Parallel()

	payloads, err := asyncapi.Payloads(unconnected(t).Router)
	if err != nil {
		t.Fatal(err)
	}

	if err := asyncapi.Check(filepath.Join("..", "..", "docs", "schemas"), payloads); err != nil {
		t.Error(err)
	}
}

// unconnected returns a service that connects to nothing.
func unconnected(t *testing.T) *app.Service {
	t.Helper()

	cfg := config.Default()
	cfg.Postgres.URL = "postgres://127.0.0.1/unused"

	s, release, err := millrace.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(release)

	return s
}
