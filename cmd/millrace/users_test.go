package main

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// startWithAlice runs a service with the user alice, an update of a user who does not
// exist, and an old analytics event. It returns the id of the message that created
// alice.
func startWithAlice(t *testing.T) (url string, created uuid.UUID) {
	t.Helper()

	url = pgtest.URL(t)
	s := apptest.New(t, url, func(c *config.Config) { c.Consumer.AwaitTimeout = 100 * time.Millisecond })
	s.Run()

	created = s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@home.example"}}`)
	s.Publish("user.updated", `{"user_id":"nobody","updates":{"name":"X"}}`)
	s.Publish("analytics.track", `{"event":"old","timestamp":"2001-01-01"}`)
	s.Messages("notifications", 1)
	s.Messages("user.updated", 1)
	s.Messages("analytics.track", 1)
	s.WaitUntilIdle()
	pgtest.Eventually(t, "the projection catches up", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 1 })

	return url, created
}

// This test runs the commands from each part of the guide alongside a running service.
func TestTheCommandsOfTheGuide(t *testing.T) {
	t.Parallel()

	url, created := startWithAlice(t)

	expectEach(t, url, []invocation{
		{"users show alice", 0, "alice@home.example"},
		{"users show nope", exitNotFound, "there is no user nope"},
		{"users show", exitUsage, "accepts 1 arg(s)"},
		{"users list", 0, "Alice"},
		{"users list --limit 0", exitUsage, "expected a number from 1 to 100000"},
		{"users list --limit -1", exitUsage, `invalid argument "-1" for "--limit"`},
		{"users misses", 0, "user_not_found"},
		{"notifications list --user alice", 0, "logged"},
		{"notifications list --limit x", exitUsage, "expected a number from 1"},
		{"analytics top", 0, "no events in the last 14 days"},
		{"analytics top --days 0", exitUsage, "expected a number from 1 to 3660"},
		{"analytics top --limit -1", exitUsage, "expected a number from 1 to 100000"},
		{"analytics daily", 0, "no events in the last 14 days"},
		{"analytics daily old --days 2", 0, "no events old in the last 2 days"},
		{"analytics daily old new", exitUsage, "accepts between 0 and 1 arg(s)"},
		{"events show user-alice", 0, "UserCreated"},
		{"events show nope", exitNotFound, "there is no stream nope"},
		{"events export", 0, `"stream":"user-alice","version":1`},
		{"projections status", 0, "BEHIND"},
		{"projections rebuild users", 0, "rebuilt users from 1 position in"},
		{"projections rebuild nope", exitUsage, "there is no projection nope, expected one of users"},
		{"trace " + created.String(), 0, "└─ notifications  applied"},
		{"trace nope", exitNotFound, "there is no message, stream or failed message with the id or key nope"},
		{"trace 00000000-0000-7000-8000-000000000000", exitNotFound, "there is no message, stream or failed message with the id or key 0"},
	})
}

func TestUsersEraseAsksForAReasonAndErases(t *testing.T) {
	t.Parallel()

	url, _ := startWithAlice(t)

	expectEach(t, url, []invocation{
		{"users erase alice", exitUsage, "--yes: is missing"},
		{"users erase alice --dry-run", 0, "would erase user alice: 0 waiting messages, the content of 0 failed messages, the text of 0 operator actions, 0 rows of analytics, 0 rows of misses, 1 row of notifications, 1 row of users; 0 rows to review"},
		{"users show alice", 0, "alice@home.example"},
		{"users erase alice --yes", exitUsage, "why: is missing, expected a reason"},
		{"users erase alice --yes --why alice@home.example", exitUsage, "why: contains the person's name or address"},
		{"users erase alice --yes --why ticket --search x", exitUsage, "search[0]: expected printable text of at least 3 bytes"},
		{"users erase alice --yes --why ticket", 0, "erased user alice: 0 waiting messages"},
		{"users erase alice --yes --why ticket --json", 0, `"emptied": 0`},
		{"users erase nope --dry-run", exitNotFound, "there is no user nope"},
		{"users erase nope --yes --why ticket", exitNotFound, "there is no user nope"},
		{"activity", 0, "ticket"},
		{"users list", 0, "(erased)"},
	})
}

func TestOnlyYesConfirms(t *testing.T) {
	t.Parallel()

	for answer, want := range map[string]error{"y\n": nil, "Yes\n": nil, "YES": nil, "n\n": errUnconfirmed, "\n": errUnconfirmed, "": errUnconfirmed, "yy\n": errUnconfirmed} {
		var out strings.Builder

		if err := ask(strings.NewReader(answer), &out, "Erase?"); !errors.Is(err, want) || out.String() != "Erase? [y/N] " {
			t.Errorf("%q: got %v after %q", answer, err, out.String())
		}
	}
}

// A user who is known only from a failed message is erased, and no command mentions
// them any more.
func TestAUserInFailedMessagesIsErased(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)
	s := apptest.New(t, url)

	err := s.Failed.Stop(t.Context(), failed.Entry{
		Consumer: "account.create", Topic: "user.created", Key: "zoe@home.example", MessageID: event.NewID(), Origin: "test",
		Headers: event.Headers{"to": "zoe@home.example"}, Payload: []byte(`{"user":{"id":"zoe-1","name":"Zoe Quastenberg","email":"zoe@home.example"}}`),
		Reason: event.ReasonFailed, Error: "no place for Zoe Quastenberg",
	})
	if err != nil {
		t.Fatal(err)
	}

	for _, args := range []string{"failed discard 1 --why moved", "users erase zoe-1 --dry-run", "users erase zoe-1 --yes --why ticket"} {
		if out, code := run(t, url, strings.Split(args, " ")...); code != 0 || strings.HasPrefix(args, "users") && !strings.Contains(out, "the content of 1 failed message,") {
			t.Errorf("millrace %s: exit code %d: %s", args, code, out)
		}
	}

	for _, args := range []string{
		"failed list --state all", "failed show 1", "failed show 1 --json", "failed groups --state all", "failed count --by key --state all", "failed export --state all",
		"activity", "users list", "users show zoe-1", "users misses", "notifications list", "events export", "events show user-zoe-1",
	} {
		out, code := run(t, url, strings.Split(args, " ")...)
		for _, word := range []string{"Quastenberg", "home.example", base64.StdEncoding.EncodeToString([]byte("Quastenberg"))} {
			if code != 0 || strings.Contains(out, word) {
				t.Errorf("millrace %s: exit code %d, and it says %s: %s", args, code, word, out)
			}
		}
	}
}
