package console_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/test/apptest"
)

func TestAConsumerIsPausedAndResumed(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	olga, vera := b.as(access.Operator), b.as(access.Viewer)

	const at = "/console/consumers/fulfilment.charge"

	olga.get("/console/consumers").has(t, "fulfilment.charge", "payments.requested", "embedded", `aria-label="Messages per second, last 15 minutes`)
	olga.get(at).has(t, ">running<", "No transaction in the last 15 minutes.", "Show what a pause would affect")

	olga.post(at+"/pause", "for", "30m", "why", "provider moves").has(t, "Dry run: nothing has changed yet", "Messages on payments.requested stay in the outbox", `name="apply" value="1"`)

	if got := b.acted(); got != "" {
		t.Errorf("a dry run has recorded %q", got)
	}

	olga.post(at+"/pause", "for", "30m", "why", "Mr Miller moves", "apply", "1").has(t, "fulfilment.charge is paused on all replicas.")
	olga.get(at).has(t, ">paused<", "token:operator", "Mr Miller moves")

	p := vera.get(at)
	p.has(t, ">paused<")
	p.lacks(t, "Miller", `method="post" action="/console/consumers`)

	olga.post(at+"/resume", "why", "moved").has(t, "fulfilment.charge is resumed on all replicas.")
	olga.post(at+"/resume").has(t, "Nothing has changed: fulfilment.charge was not paused.")

	if got := b.acted(); got != "token:operator resumed moved; token:operator paused Mr Miller moves" {
		t.Errorf("recorded %q", got)
	}

	for _, action := range []string{"/pause", "/resume"} {
		if p := vera.post(at+action, "apply", "1"); p.status != http.StatusForbidden {
			t.Errorf("%s as a viewer: %d", action, p.status)
		}
	}

	if p := olga.post(at+"/pause", "for", "soon"); p.status != http.StatusUnprocessableEntity {
		t.Errorf("a pause for an unknown time: %d", p.status)
	}

	if p := olga.get("/console/consumers/nothing"); p.status != http.StatusNotFound {
		t.Errorf("a consumer that does not exist: %d", p.status)
	}
}

func TestTopicsSayWhatTheyCarry(t *testing.T) {
	t.Parallel()

	p := open(t).get("/console/consumers")
	_, row, _ := strings.Cut(p.html, `<th scope="row" class="break name">user.created</th>`)
	row, _, _ = strings.Cut(row, "</tr>")

	if !strings.Contains(row, "account.create") || !strings.Contains(row, "personal, hidden from viewers") {
		t.Errorf("user.created: %s", row)
	}
}

func TestAWaitingKeyIsRetriedAndSkipped(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	olga, vera := b.as(access.Operator), b.as(access.Viewer)
	olga.get("/console/waiting").has(t, "No key is waiting.")

	// Updates of a user who is unknown wait.
	b.Publish("user.updated", `{"user_id":"alice","updates":{"name":"Alice Adams"}}`)

	var p shown

	for !strings.Contains(p.html, ">alice<") {
		p = olga.get("/console/waiting?consumer=account.update")
	}

	p.has(t, ">early<", "awaits", `<time class="nowrap" datetime=`, "This makes all keys due now that the filter selects.")
	olga.get("/console/waiting").has(t, "There is no filter: this makes every waiting key due now.")
	olga.get("/console/waiting?key=bob").has(t, "No key is waiting.")

	id := apptest.Value[int64](b.Service, `SELECT id FROM failed_messages`)
	at := strings.Replace(entry(id), "failures", "waiting", 1)

	olga.get(at).has(t, "1 message waits, in this order", "Retry now", "Skip the first message")
	vera.get(at).lacks(t, "Adams", `method="post" action="/console/waiting`)

	for _, path := range []string{"/console/waiting/retry", at + "/retry", at + "/skip"} {
		if p := vera.post(path); p.status != http.StatusForbidden {
			t.Errorf("%s as a viewer: %d", path, p.status)
		}
	}

	if p := olga.post(at+"/retry", "why", "try it"); !strings.HasPrefix(p.url.Path, "/console/requests/") || p.status != http.StatusOK {
		t.Errorf("after a retry: %s %d", p.url, p.status)
	}

	olga.post("/console/waiting/retry", "key", "bob").has(t, "Nothing has changed: no key is waiting any more.")
	olga.post(at+"/skip", "why", "a test").has(t, "is stopped. It needs a decision.", "No other message waits for its key.")

	if got := b.acted(); got != "token:operator skipped a test; token:operator retried try it" {
		t.Errorf("recorded %q", got)
	}

	if p := olga.post(at + "/skip"); p.status != http.StatusNotFound {
		t.Errorf("a message that does not wait: %d", p.status)
	}
}
