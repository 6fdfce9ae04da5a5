package event_test

import (
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
)

// profile is a payload with personal data.
type profile struct {
	Age  int `json:"age"`
	User struct {
		ID string `json:"id"`
	} `json:"user"`
}

func (profile) Topic() string { return "profiles" }

func (p profile) Key() string { return p.User.ID }

func (profile) Validate() error { return nil }

func (p profile) Subject() string { return p.User.ID }

func (profile) Marks() []string { return nil }

func TestTheSubjectIsReadFromMalformedMessages(t *testing.T) {
	t.Parallel()

	for payload, want := range map[string]string{
		`{"age":7,"user":{"id":"u1"}}`:            "u1",
		`{"age":"seven","user":{"id":"u1"}}`:      "u1",
		`{"age":"seven","user":{"id":"u\u0031"}}`: "u1",
		`{"age":7,"user":"u1"}`:                   "",
		`{"age":7,"user":{"id":1}}`:               "",
		`{"age":`:                                 "",
	} {
		if got := event.ReadPersonal(profile{}, []byte(payload)).Subject(); got != want {
			t.Errorf("%s: got %q, expected %q", payload, got, want)
		}
	}
}
