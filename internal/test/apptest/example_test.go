package apptest_test

import (
	"testing"

	"github.com/millracehq/millrace/internal/test/apptest"
)

// A service test needs three lines: start, publish, wait.
func ExampleStart() { //nolint:testableexamples // needs a test
	var t *testing.T // the test's own t

	s := apptest.Start(t)
	s.Publish("user.created", `{"user": {"id": "alice", "name": "Alice", "email": "alice@example.com"}}`)
	welcome := s.Messages("notifications", 1)[0]

	if welcome.Fields()["content"] != "Welcome Alice!" {
		t.Errorf("got %s", welcome.Payload)
	}
}
