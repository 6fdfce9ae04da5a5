package account

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/user"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func parse(t *testing.T, text string) Fields {
	t.Helper()

	var f Fields
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatal(err)
	}

	return f
}

func TestTransformGivesTodaysNames(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ old, want string }{
		{`{"userId":"1","userName":"Bob","action":"create"}`, `{"user_id":"1","name":"Bob","action":"create"}`},
		{`{"user_id":"1","name":"Bob","action":"update"}`, `{"user_id":"1","name":"Bob","action":"update"}`},
		{`{"userId":"1","userEmail":"b@x.org","userAction":"createUser"}`, `{"user_id":"1","email":"b@x.org","action":"create"}`},
		{`{"action":"UpdateUser"}`, `{"action":"update"}`},
		{`{"action":"update_user"}`, `{"action":"update"}`},
		{`{"action":"User"}`, `{"action":"User"}`},
		{`{"action":7}`, `{"action":7}`},
		{`{"userId":"1","user_id":"2"}`, `{"userId":"1","user_id":"2"}`},
		{`{}`, `{}`},
	} {
		old := parse(t, c.old)
		if diff := cmp.Diff(parse(t, c.want), Transform(old)); diff != "" {
			t.Errorf("%s: %s", c.old, diff)
		}

		if diff := cmp.Diff(parse(t, c.old), old); diff != "" {
			t.Errorf("%s: the argument changed: %s", c.old, diff)
		}
	}
}

func TestValidateRequiresUserAndAction(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ text, says string }{
		{`{"user_id":"1","action":"delete"}`, ""}, // Process, not Validate, checks which action it is
		{`{}`, "action: is missing, expected create or update; user_id: is missing"},
		{`{"user_id":1,"action":"create"}`, "user_id: is not text, expected a JSON string"},
		{`{"user_id":null,"action":"create"}`, "user_id: is not text, expected a JSON string"},
		{`{"user_id":"1","action":["create"]}`, "action: is not text, expected a JSON string"},
		{`{"user_id":"1","userId":"2","action":"create"}`, "userId: cannot be combined with user_id"},
		{`{"user_id":"` + strings.Repeat("x", 201) + `","action":"create"}`, "user_id: has 201 bytes"},
	} {
		err := parse(t, c.text).Validate()
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "\n", "; "), c.says)) {
			t.Errorf("%s: got %v, expected %q", c.text, err, c.says)
		}
	}
}

func TestProcessMakesTodaysMessages(t *testing.T) {
	t.Parallel()

	name := "Bob"

	for _, c := range []struct {
		text string
		want event.Payload
		says string
	}{
		{
			text: `{"user_id":"1","action":"create","name":"Bob","email":"b@x.org","city":"Bonn"}`,
			want: UserCreated{User: NewUser{ID: "1", Name: "Bob", Email: "b@x.org", Properties: user.Properties{"city": json.RawMessage(`"Bonn"`)}}},
		},
		{
			text: `{"user_id":"1","action":"create","user":{"name":"Bob","email":"b@x.org"}}`,
			want: UserCreated{User: NewUser{ID: "1", Name: "Bob", Email: "b@x.org"}},
		},
		{text: `{"user_id":"1","action":"update","name":"Bob"}`, want: UserUpdated{UserID: "1", Updates: user.Update{Name: &name}}},
		{text: `{"user_id":"1","action":"update","updates":{"name":"Bob"}}`, want: UserUpdated{UserID: "1", Updates: user.Update{Name: &name}}},
		{text: `{"user_id":"1","action":"update"}`, says: "updates: is empty"},
		{text: `{"user_id":"1","action":"update","updates":7}`, says: "updates: is not an object"},
		{text: `{"user_id":"1","action":"update","name":7}`, says: "name: is a JSON number, expected a string"},
		{text: `{"user_id":"1","action":"create","name":"Bob"}`, says: "user.email: is missing"},
		{text: `{"user_id":"1","action":"create","name":"Bob","email":"Bob <b@x.org>"}`, says: "user.email: is not an e-mail address"},
		{text: `{"user_id":"1","action":"delete"}`, says: `action: is "delete", expected create or update`},
	} {
		got, err := parse(t, c.text).Process()
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: got %v, expected %q", c.text, err, c.says)
			}

			continue
		}

		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", c.text, err, diff)
		}
	}
}

func TestUsersAreValidated(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ text, says string }{
		{`{"user":{"id":"1","name":"A","email":"a@x.org"}}`, ""},
		{`{}`, "user.id: is missing"},
		{`{"user":{"id":"1","name":"  ","email":"a@x.org"}}`, "user.name: is missing"},
		{`{"user":{"id":"1","name":"` + strings.Repeat("ü", 201) + `","email":"a@x.org"}}`, "user.name: has 201 characters"},
		{`{"user":{"id":"1","name":"A","email":"a"}}`, "user.email: is not an e-mail address"},
		{`{"user":{"id":"1","name":"A","email":"a@x.org\nBcc: b@x.org"}}`, "user.email: is not"},
		{`{"user":{"id":"1","name":"A","email":"` + strings.Repeat("a", 250) + `@x.org"}}`, "user.email: has 256 bytes"},
		{`{"user":{"id":"1","name":"A","email":"a@x.org","x":"` + strings.Repeat("x", 9000) + `"}}`, "user.x: has 9002 bytes"},
		{`{"user":{"id":"1","name":"A","email":"a@x.org","x":"a\u0000b"}}`, "user.x: contains the character U+0000"},
		{`{"user":{"id":"1","name":"A","email":"a@x.org","x":"a\\u0000b"}}`, ""},
		{`{"user":{"id":"1","name":"A","email":"a@x.org","x":[{"y":-1e400000}]}}`, "user.x: contains the number 1e400000"},
		{`{"user":{"id":"1","name":"A","email":"a@x.org","` + strings.Repeat("x", 65) + `":1}}`, "is not a property name"},
	} {
		_, err := event.Decode[UserCreated]([]byte(c.text))

		var rejection *event.RejectError
		if c.says == "" && err != nil || c.says != "" && (!errors.As(err, &rejection) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%.80s: got %v, expected %q", c.text, err, c.says)
		}
	}
}

func FuzzLegacy(f *testing.F) {
	for _, seed := range []string{`{"userId":"1","userName":"Bob","action":"create"}`, `{"action":"User"}`, `{"user":null}`, `[]`, `null`, `{"action":"\ud800"}`} {
		f.Add([]byte(seed))
	}

	f.Fuzz(func(t *testing.T, data []byte) {
		payload, err := event.Decode[LegacyEvent](data)

		var rejection *event.RejectError
		if err != nil {
			if !errors.As(err, &rejection) || err.Error() == "" {
				t.Errorf("not a rejection with a message: %v", err)
			}

			return
		}

		if payload.payload == nil || payload.Key() == "" {
			t.Errorf("accepted without a message: %s", data)
		}

		again := Transform(payload.fields)
		if diff := cmp.Diff(payload.fields, again); diff != "" {
			t.Errorf("transforming twice differs from transforming once: %s", diff)
		}
	})
}

// A value that the table users cannot hold would stop the projection for all
// users, so everything that is accepted must be storable.
func TestWhatIsAcceptedCanBeStored(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	accepted := 0

	for _, value := range []string{
		`1e1000`, `1e1001`, `1e-1000`, `1E-1001`, `-0`, `1e+308`, `1e400000`, `1e99999999999999999999`, `0.` + strings.Repeat("1", 900) + `e-1000`,
		strings.Repeat("9", 1000) + `e1000`, strings.Repeat("9", 1001), `"\ud800"`, `"\ud83d\ude00"`, `"\u0000"`, `"\\u0000"`, `"\\\u0000"`,
		`{"\u0000":1}`, `[[{"a":[1e999999]}]]`, `"1e999999"`, `"\"1e999999"`, `[1,2e9999]`, `{"a":"b","c":1e-999999}`,
		strings.Repeat("[", 60) + strings.Repeat("]", 60),
	} {
		_, err := event.Decode[UserCreated]([]byte(`{"user":{"id":"1","name":"A","email":"a@x.org","x":` + value + `}}`))
		_, stored := pool.Exec(t.Context(), `SELECT $1::jsonb`, value)

		if err == nil {
			accepted++
		}

		if err == nil && stored != nil {
			t.Errorf("%.40s is accepted, but Postgres reports %v", value, stored)
		}
	}

	if accepted != 11 {
		t.Errorf("%d values are accepted, expected 11", accepted)
	}
}
