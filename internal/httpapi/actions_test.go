package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// overtake records a later message of a key as applied.
func (r *rig) overtake(key string) uuid.UUID {
	r.t.Helper()

	id := event.NewID()

	err := postgres.InTx(r.t.Context(), r.pool, func(tx pgx.Tx) error {
		return failed.Overtake(r.t.Context(), tx, "writer", []failed.Delivery{{MessageID: id, Key: key}})
	})
	if err != nil {
		r.t.Fatal(err)
	}

	return id
}

func TestAnOvertakenMessageIsRequeuedOnlyWithTheWord(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")
	r.add("b", "y")

	seen := r.ask("GET", "/failed/1", "")
	if seen.at("overtaken") != nil {
		t.Errorf("got %s", seen.text)
	}

	later := r.overtake("a")

	if a := r.ask("GET", "/failed/1", "", "If-None-Match", seen.headers.Get("ETag")); a.status != 200 || a.at("overtaken", "last_ids", 0) != later.String() {
		t.Errorf("the message has changed: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/1/requeue", `{"overtaken":true}`, "If-Match", seen.headers.Get("ETag")); a.status != 412 {
		t.Errorf("with a tag from before: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/1/requeue", `{}`); a.status != 409 || a.at("type") != "urn:millrace:problem:overtaken" ||
		a.at("errors", 0, "value", "messages") != 1.0 || a.at("errors", 0, "value", "key") != "a" {
		t.Errorf("without the word: %d %s", a.status, a.text)
	}

	// In a request for several messages, the others are requeued.
	if a := r.ask("POST", "/failed/requeue", `{"all":true}`); a.status != 200 || a.at("done") != 1.0 || a.at("refused_by", "overtaken") != 1.0 ||
		a.at("refusals", 0, "overtaken", "last_ids", 0) != later.String() {
		t.Errorf("many: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/1/requeue", `{"overtaken":true}`); a.status != 200 || a.at("state") != "waiting" {
		t.Errorf("with the word: %d %s", a.status, a.text)
	}
}

func TestAnEditChangesTheKeyOnlyIfItNamesTheNewOne(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	a := r.ask("PATCH", "/failed/1", `{"payload":{"text":"{\"id\":\"b\",\"text\":\"x\"}"}}`)
	if diff := cmp.Diff(map[string]any{"from": "a", "to": "b"}, a.at("errors", 0, "value")); a.status != 409 || diff != "" ||
		a.at("type") != "urn:millrace:problem:key-change" {
		t.Errorf("got %d %s", a.status, a.text)
	}

	if a := r.ask("PATCH", "/failed/1", `{"new_key":"b","payload":{"text":"{\"id\":\"b\",\"text\":\"x\"}"}}`); a.status != 200 || a.at("is_edited") != true {
		t.Errorf("got %d %s", a.status, a.text)
	}

	// From now on, messages with the new key overtake the message.
	r.overtake("a")

	if a := r.ask("GET", "/failed/1", ""); a.at("overtaken") != nil {
		t.Errorf("got %s", a.text)
	}

	r.overtake("b")

	if a := r.ask("GET", "/failed/1", ""); a.at("overtaken", "key") != "b" {
		t.Errorf("got %s", a.text)
	}
}

func TestManyMessagesArePatched(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")
	r.add("b", "y")

	if a := r.ask("POST", "/failed/edit", `{"all":true,"dry_run":true,"why":"typo","patch":{"text":"z"}}`); a.status != 200 || a.at("done") != 2.0 ||
		!strings.Contains(fmt.Sprint(a.at("diffs", 0, "diff")), `+  "text": "z"`) {
		t.Errorf("got %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/edit", `{"ids":[1,2],"why":"typo","patch":{"text":"z"}}`); a.status != 200 || a.at("done") != 2.0 {
		t.Errorf("got %d %s", a.status, a.text)
	}

	if a := r.ask("GET", "/failed/2/payload?which=edited", ""); a.text != `{"id":"b","text":"z"}` {
		t.Errorf("got %s", a.text)
	}

	if a := r.ask("POST", "/failed/edit", `{"ids":[1],"why":"typo","patch":[1]}`); a.status != 422 || !strings.Contains(a.text, "expected a JSON object") {
		t.Errorf("got %d %s", a.status, a.text)
	}
}

func TestManyMessagesAreEditedByAnExpression(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")
	r.add("b", "y")

	for _, c := range []struct {
		body   string
		status int
		says   string
	}{
		{`{"all":true,"why":"typo"}`, 422, "expected either patch or jq"},
		{`{"all":true,"why":"typo","jq":".","patch":{}}`, 422, "expected either patch or jq"},
		{`{"all":true,"why":"typo","jq":".text |"}`, 422, "jq: unexpected EOF at character 8"},
		{`{"all":true,"why":"typo","jq":".text += \"!\"","dry_run":true}`, 200, `+  \"text\": \"x!\"`},
		{`{"all":true,"why":"typo","jq":".text += \"!\""}`, 200, `"done":2`},
		{`{"all":true,"why":"typo","jq":".text = .id + 1"}`, 200, `"refused":2`},
	} {
		if a := r.ask("POST", "/failed/edit", c.body); a.status != c.status || !strings.Contains(a.text, c.says) {
			t.Errorf("%s: got %d %s, expected %d with %s", c.body, a.status, a.text, c.status, c.says)
		}
	}

	if a := r.ask("GET", "/failed/2/payload?which=edited", ""); a.text != `{"id":"b","text":"y!"}` {
		t.Errorf("got %s", a.text)
	}
}

// attempted returns a failed message as it is after one more failed attempt.
func (r *rig) attempted(id int64) failed.Entry {
	r.t.Helper()

	e, err := r.store.Get(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}

	e.Attempts++
	e.Reason, e.Error = event.ReasonFailed, "the disk is full"

	return e
}

// requeueFive requeues five messages. Then message 1 fails and waits, which blocks
// message 2; message 3 fails and stops, message 4 is applied, and message 5 has not been
// tried. It returns the path of the outcome.
func (r *rig) requeueFive() (outcome string) {
	r.t.Helper()

	for i, key := range []string{"a", "a", "b", "c", "d"} {
		r.add(key, fmt.Sprint(i+1))
	}

	outcome = "/requests/" + fmt.Sprint(r.ask("POST", "/failed/requeue", `{"all":true}`).at("request"))

	if a := r.ask("GET", outcome+"?wait=1", ""); a.status != 200 || a.at("messages") != 5.0 || a.at("untried") != 5.0 {
		r.t.Errorf("before the attempts: %d %s", a.status, a.text)
	}

	err := errors.Join(
		r.store.Park(r.t.Context(), r.attempted(1), time.Hour), r.store.Stop(r.t.Context(), r.attempted(3)), r.store.Finish(r.t.Context(), r.attempted(4)))
	if err != nil {
		r.t.Fatal(err)
	}

	return outcome
}

func TestTheOutcomeOfARequestCanBeAskedFor(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	a := r.ask("GET", r.requeueFive(), "")

	for name, want := range map[string]float64{"messages": 5, "applied": 1, "waiting": 2, "stopped": 1, "untried": 1, "withdrawn": 0} {
		if a.at(name) != want {
			t.Errorf("%s: got %v, expected %v", name, a.at(name), want)
		}
	}

	if a.at("causes", 0, "messages") != 2.0 || a.at("causes", 0, "state") != "waiting" || a.at("causes", 1, "cause") != "the disk is full" {
		t.Errorf("got %s", a.text)
	}

	if a := r.ask("GET", "/requests/"+event.NewID().String(), ""); a.status != 404 {
		t.Errorf("an unknown request: %d", a.status)
	}
}

func TestTheOutcomeIsAnsweredAsSoonAsEachMessageHasBeenTried(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	outcome := r.requeueFive()
	answered := make(chan answer)

	go func() { answered <- r.ask("GET", outcome+"?wait=20", "") }()

	if err := r.store.Finish(context.Background(), r.attempted(5)); err != nil {
		t.Fatal(err)
	}

	if a := <-answered; a.at("untried") != 0.0 || a.at("applied") != 2.0 {
		t.Errorf("got %s", a.text)
	}
}

func TestARetrySaysWhatHoldsUpTheMessages(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "1")

	if a := r.ask("POST", "/consumers/writer/pause", `{"why":"maintenance"}`, "X-Millrace-Operator", "bob"); a.status != 200 {
		t.Fatal(a.text)
	}

	const why = "it is paused by bob since "

	requeued := r.ask("POST", "/failed/requeue", `{"all":true}`)
	if got := fmt.Sprint(requeued.at("held", 0, "why")); requeued.at("done") != 1.0 || !strings.HasPrefix(got, why) {
		t.Errorf("a requeue: %s", requeued.text)
	}

	retried := r.ask("POST", "/waiting/retry", `{"all":true}`)
	if got := fmt.Sprint(retried.at("held", 0, "why")); retried.at("due") != 1.0 || retried.at("held", 0, "consumer") != "writer" || !strings.HasPrefix(got, why) {
		t.Errorf("a retry: %s", retried.text)
	}

	if a := r.ask("GET", "/requests/"+fmt.Sprint(retried.at("request")), ""); a.at("untried") != 1.0 || a.at("held", 0, "consumer") != "writer" {
		t.Errorf("its outcome: %s", a.text)
	}
}

func TestAnActionThatWasDoneIsReportedAlthoughWhatFollowsIsUnknown(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	if _, err := r.pool.Exec(t.Context(), `ALTER TABLE paused_consumers RENAME TO paused_away`); err != nil {
		t.Fatal(err)
	}

	a := r.ask("POST", "/failed/requeue", `{"all":true,"why":"corrected"}`)
	if a.status != 200 || a.body["done"] != 1.0 || !strings.Contains(fmt.Sprint(a.body["unknown"]), "paused_consumers") {
		t.Errorf("got %d: %s", a.status, a.text)
	}
}

// removeChanged makes each failed message disappear as soon as it has changed, like one
// that is applied and removed before anybody looks.
func (r *rig) removeChanged() {
	r.t.Helper()

	_, err := r.pool.Exec(r.t.Context(), `
		CREATE FUNCTION remove() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM failed_messages WHERE id = NEW.id; RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER remove AFTER UPDATE ON failed_messages DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION remove()`)
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestAnActionOnAMessageThatIsGoneAfterwardsIsReportedAsDone(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	for range 4 {
		r.add("a", "x")
	}

	if a := r.ask("POST", "/failed/1/requeue", `{}`); a.status != 200 {
		t.Fatal(a.text)
	}

	r.removeChanged()

	for _, c := range []struct{ method, path, body string }{
		{"POST", "/waiting/1/skip", `{}`},
		{"PATCH", "/failed/2", `{"payload":{"text":"{\"id\":\"a\",\"text\":\"y\"}"}}`},
		{"POST", "/failed/3/requeue", `{"out_of_order":true}`},
		{"POST", "/failed/4/discard", `{"why":"junk"}`},
	} {
		a := r.ask(c.method, c.path, c.body)
		if a.status != 200 || a.headers.Get("ETag") != "" || !strings.HasPrefix(fmt.Sprint(a.body["unknown"]), "there is no failed message") {
			t.Errorf("%s: got %d: %s", c.path, a.status, a.text)
		}
	}

	if a := r.ask("GET", "/activity", ""); strings.Count(a.text, `"action"`) != 5 {
		t.Errorf("got %s", a.text)
	}
}
