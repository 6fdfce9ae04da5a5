package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// evil is text with everything that a terminal obeys.
const evil = "x\x1b[31m\a\r\u009b31m\x7f\u0085\u202ereversed\u2066isolated\u2028line\tend\n"

// obeyed reports whether a terminal obeys r. Commands print line breaks, but no tabs:
// they align with spaces.
func obeyed(r rune) bool {
	return r != '\n' && (unicode.IsControl(r) || r == unicode.ReplacementChar || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control))
}

// evilData runs a service that has evil text wherever people and other systems can
// put it, and returns the address of its database.
func evilData(t *testing.T) string {
	t.Helper()

	url := pgtest.URL(t)
	s := apptest.New(t, url)
	s.ExpectFailures()
	s.Run()
	s.Seed()

	quoted, _ := json.Marshal(evil)

	s.Publish("user.created", "{\"user\":{\"id\":\"alice\",\"name\":\"A\u202elice\",\"email\":\"a@b.example\",\"about\":"+string(quoted)+",\"a\u202eb\":1}}")
	s.Publish("analytics.track", fmt.Sprintf(`{"event":%s,"timestamp":%q}`, quoted, time.Now().Format(time.RFC3339)))
	s.Publish("notifications", fmt.Sprintf(`{"user_id":"alice","content":%s,"channel":"log"}`, quoted))

	for _, key := range []string{evil, "plain"} {
		err := s.Failed.Stop(t.Context(), failed.Entry{
			Consumer: "fulfilment.place", Topic: "orders.created", MessageID: event.NewID(), Origin: "o" + evil, Key: key,
			Headers: event.Headers{"name" + evil: "value" + evil, "bytes": "\x9b\xff"},
			Payload: []byte("{\"text\":" + string(quoted) + ",\"raw\":\"\u009b\u202e\"}"), Reason: event.ReasonFailed, Error: "no luck: " + evil,
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	s.WaitUntilIdle()
	pgtest.Eventually(t, "the projection catches up", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 1 })

	return url
}

func TestCommandsPrintNothingThatATerminalObeys(t *testing.T) {
	t.Parallel()

	url := evilData(t)

	for _, c := range []struct {
		args []string
		says string // after the escaped text
	}{
		{[]string{"consumers", "pause", "fulfilment.place", "--by", evil, "--why", evil}, "paused fulfilment.place"},
		{[]string{"consumers", "list"}, `paused by x\u001b[31m\u0007\r\u009b31m\u007f\u0085\u202ereversed\u2066isolated\u2028line\tend`},
		{[]string{"failed", "discard", "1", "--by", evil, "--why", evil, "--yes"}, "discard"},
		{[]string{"activity"}, `x\u001b[31m`},
		{[]string{"failed", "list", "--state", "all"}, `no luck: x\u001b[31m\u0007\r\u009b31m`},
		{[]string{"failed", "groups", "--state", "all"}, `\u009b`},
		{[]string{"failed", "count", "--by", "key", "--state", "all"}, `x\u001b[31m`},
		{[]string{"failed", "show", "1"}, `x\u001b[31m`},
		{[]string{"failed", "show", "1", "--diff"}, ""},
		{[]string{"failed", "export", "--state", "all"}, `\u001b[31m`},
		{[]string{"failed", "waiting"}, ""},
		{[]string{"users", "show", "alice"}, `\u202e`},
		{[]string{"users", "list"}, `A\u202elice`},
		{[]string{"notifications", "list"}, ""},
		{[]string{"analytics", "top"}, `x\u001b[31m`},
		{[]string{"events", "export"}, ""},
		{[]string{"events", "show", "user-alice"}, ""},
		{[]string{"status"}, `paused by x\u001b[31m`},
		{[]string{"orders", "show", evil}, `there is no order x\u001b[31m`},
		{[]string{"users", "show", evil}, `there is no user x\u001b[31m`},
		{[]string{"events", "show", evil}, `there is no stream x\u001b[31m`},
		{[]string{"failed", "list", "--topic", evil}, `there is no topic x\u001b[31m`},
		{[]string{"failed", "list", "--since", evil}, `\x1b[31m`},
		{[]string{"trace", evil}, `there is no message, stream or failed message with the id or key x\u001b[31m`},
		{[]string{"nope" + evil}, `nopex\x1b[31m`},
		{[]string{"publish", evil, "{}"}, `there is no topic x\u001b[31m`},
		{[]string{"publish", "orders.created", `{"order":{"id":"` + strings.TrimSpace(evil) + `"}}`}, "order.id: "},
		{[]string{"publish", "user.created", "{\"user\":{\"\u202e\":{\"a\":1,\"a\":2}}}"}, `["\u202e"]`},
		{[]string{"config", "--log-level", evil}, ""},
	} {
		for _, format := range []string{"", "--json"} {
			args := c.args
			if format != "" {
				args = append(slices.Clip(args), format)
			}

			out, _ := run(t, url, args...)
			if i := strings.IndexFunc(out, obeyed); i >= 0 {
				t.Errorf("millrace %q prints %q", args, out[max(0, i-20):min(len(out), i+20)])
			}

			if format == "" && !strings.Contains(out, c.says) {
				t.Errorf("millrace %q: got %s, expected %q", args, out, c.says)
			}
		}
	}
}

// Text that is escaped for the terminal reaches a program unchanged.
func TestJSONHasTheTextAsItIs(t *testing.T) {
	t.Parallel()

	url := evilData(t)

	out, code := run(t, url, "failed", "show", "1", "--json")

	var entry struct {
		Key, Error, Origin string
		Headers            event.Headers
	}
	if err := json.Unmarshal([]byte(out), &entry); err != nil || code != 0 {
		t.Fatalf("%v: %s", err, out)
	}

	if entry.Key != evil || entry.Error != "no luck: "+evil || entry.Origin != "o"+evil || entry.Headers["name"+evil] != "value"+evil || entry.Headers["bytes"] != "\x9b\xff" {
		t.Errorf("got %+q", entry)
	}
}
