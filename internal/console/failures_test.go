package console_test

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// stop stores a stopped message on orders.created and returns its id.
func (b *browser) stop(key, payload, text string) int64 {
	b.t.Helper()

	return b.stopOn("fulfilment.place", "orders.created", key, payload, text)
}

func (b *browser) stopOn(consumer, topic, key, payload, text string) int64 {
	b.t.Helper()

	id := event.NewID()

	err := b.Failed.Stop(b.t.Context(), failed.Entry{
		Consumer: consumer, Topic: topic, MessageID: id, Key: key, Headers: event.Headers{"source": "shop <&>"},
		Payload: []byte(payload), Reason: event.ReasonInvalid, Error: text,
	})
	if err != nil {
		b.t.Fatal(err)
	}

	return apptest.Value[int64](b.Service, `SELECT id FROM failed_messages WHERE message_id = $1`, id)
}

// order returns the payload of an order.
func order(id string, quantity any) string {
	return fmt.Sprintf(`{"order":{"total_amount":99.90,"id":%q,"product_id":"product_1","quantity":%v}}`, id, quantity)
}

// entry returns the path of a message.
func entry(id int64) string { return fmt.Sprintf("/console/failures/%d", id) }

// revision returns the revision in the forms of a page.
func (p shown) revision(t *testing.T) string {
	t.Helper()

	found := regexp.MustCompile(`name="revision" value="(\d+)"`).FindStringSubmatch(p.html)
	if found == nil {
		t.Fatalf("the page has no form: %s", p.html)
	}

	return found[1]
}

// acted returns who did what, newest first.
func (b *browser) acted() string {
	b.t.Helper()

	return apptest.Value[string](b.Service, `SELECT coalesce(string_agg(who || ' ' || action || ' ' || why, '; ' ORDER BY id DESC), '') FROM operator_actions`)
}

func TestFailuresAreGroupedAndFiltered(t *testing.T) {
	t.Parallel()

	b := open(t)
	b.get("/console/failures").has(t, "No message is stopped.", "appears here")

	for i := range 3 {
		b.stop(fmt.Sprintf("o%d", i), order(fmt.Sprintf("o%d", i), 0), "order.quantity: is 0, expected at least 1")
	}

	b.stop("strange", `{"order":{"id":"strange"}}`, "order.product_id: is missing")

	p := b.get("/console/failures")
	p.has(t, "4 messages in 2 groups", "order.quantity", "order.product_id", "3 in 24 hours, 3 in the last hour")

	group := regexp.MustCompile(`/console/failures\?group=\w+`).FindString(p.html)

	p = b.get(group)
	p.has(t, "3 messages in 1 group", "Newest error")
	p.lacks(t, "order.product_id")

	for query, want := range map[string]string{
		"text=STRANGE":              "1 message in 1 group", // the key, in any case
		"text=" + "product_id%3A":   "1 message in 1 group", // the error
		"text=%22quantity%22%3A0":   "3 messages in 1 group",
		"text=%22Quantity%22%3A0":   "The filter selects no message.",
		"key=o1":                    "1 message in 1 group",
		"consumer=fulfilment.place": "4 messages in 2 groups",
		"state=resolved":            "The filter selects no message.",
		"since=2199-01-01":          "The filter selects no message.",
	} {
		p := b.get("/console/failures?" + query)
		p.has(t, want)

		name, _, _ := strings.Cut(query, "=")
		value, _ := url.ParseQuery(query)

		if !strings.Contains(p.html, `name="`+name+`"`) || name == "text" && !strings.Contains(p.html, `value="`+html.EscapeString(value.Get(name))+`"`) {
			t.Errorf("%s: the form does not show the filter", query)
		}
	}

	for query, status := range map[string]int{"group=nothing": http.StatusNotFound, "since=soon": http.StatusUnprocessableEntity, "text=%00": http.StatusUnprocessableEntity, "message=x": http.StatusUnprocessableEntity} {
		if p := b.get("/console/failures?" + query); p.status != status {
			t.Errorf("%s: %d, expected %d", query, p.status, status)
		}
	}
}

func TestANoteOnAGroupIsShownWithWhoAndWhen(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	olga, vera := b.as(access.Operator), b.as(access.Viewer)
	b.stop("x", order("x", 0), "order.quantity: is 0, expected at least 1")
	group := strings.TrimPrefix(olga.link("/console/failures", `/console/failures\?group=\w+`), "/console/failures?group=")

	if p := olga.post("/console/failures/note", "group", group, "note", " Ada asks the shop "); p.url.RequestURI() != "/console/failures?group="+group {
		t.Errorf("after the note: %s %d", p.url, p.status)
	}

	olga.get("/console/failures").has(t, "token:operator: Ada asks the shop")
	olga.get("/console/failures?group="+group).has(t, "Ada asks the shop</p>", "by token:operator, <time", `value="Ada asks the shop"`)

	vera.get("/console/failures?group="+group).lacks(t, "Ada", "Store the note")

	if p := vera.post("/console/failures/note", "group", group, "note", "x"); p.status != http.StatusForbidden {
		t.Errorf("a note by a viewer: %d", p.status)
	}

	if p := olga.post("/console/failures/note", "group", "nothing", "note", "x"); p.status != http.StatusNotFound {
		t.Errorf("a note on a group that does not exist: %d", p.status)
	}

	olga.post("/console/failures/note", "group", group, "note", "")
	olga.get("/console/failures?group="+group).lacks(t, "Ada", ">Note<")

	if got := b.acted(); got != "token:operator noted ; token:operator noted Ada asks the shop" {
		t.Errorf("recorded %q", got)
	}
}

func TestOlderFailuresAreOnFurtherPages(t *testing.T) {
	t.Parallel()

	b := open(t)
	for i := range 27 {
		b.stop(fmt.Sprintf("o%d", i), order("x", 0), "same")
	}

	p := b.get("/console/failures?text=same")
	older := html.UnescapeString(regexp.MustCompile(`/console/failures\?older=[^"]+`).FindString(p.html))

	p = b.get(older)
	p.has(t, ">o0<", ">o1<", "27 messages in 1 group", ">Newest<")
	p.lacks(t, ">o2<", ">Older<")
}

// hostile is text that would become markup, or be shown in another order, if it were not
// escaped.
const hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe"

func TestHostileTextIsShownAndNotObeyed(t *testing.T) {
	t.Parallel()

	b := open(t)
	payload := `{"order":{"` + `<b>` + `":"</textarea><script>alert(3)</script>","id":"x"}}`
	id := b.stop(hostile, payload, "refused: "+hostile)

	for _, path := range []string{"/console/failures", "/console/failures?text=" + url.QueryEscape(hostile), entry(id), "/console/failures?group=" + url.QueryEscape(hostile)} {
		p := b.get(path)
		p.lacks(t, "<script>alert", "<img src=x", "</textarea><script", "<b>")

		if strings.Contains(p.markup(), "\u202e") {
			t.Errorf("%s: the page shows text in another order", path)
		}

		if strings.HasPrefix(path, "/console/failures/") {
			p.has(t, "&lt;script&gt;alert(1)", `\u202egnp`, "&lt;/textarea&gt;")
		}
	}
}

func TestNumbersAndTheOrderOfMembersAreKept(t *testing.T) {
	t.Parallel()

	b := open(t)
	payload := `{"order":{"z":1.10,"a":12345678901234567890.123,"e":1e+2,"id":"x","product_id":"product_1","quantity":0,"total_amount":99.90}}`
	id := b.stop("x", payload, "order.quantity: is 0")

	p := b.get(entry(id))
	p.has(t, ">1.10<", ">12345678901234567890.123<", ">1e+2<", ">99.90<")

	if strings.Index(p.html, `>&#34;z&#34;<`) > strings.Index(p.html, `>&#34;a&#34;<`) {
		t.Error("the tree sorts the members")
	}

	draft := html.UnescapeString(p.html[strings.Index(p.html, "<textarea"):strings.Index(p.html, "</textarea>")])
	draft = strings.TrimPrefix(draft[strings.Index(draft, ">")+1:], "\n")
	edited := strings.ReplaceAll(strings.ReplaceAll(draft, `"quantity": 0`, `"quantity": 2`), "\n", "\r\n") // as browsers send it

	if p := b.post(entry(id)+"/edit", "revision", p.revision(t), "payload", edited, "why", "a typo"); p.status != http.StatusOK {
		t.Fatalf("%d %s", p.status, p.html)
	}

	want := strings.Replace(payload, `"quantity":0`, `"quantity":2`, 1)
	if got := apptest.Value[string](b.Service, `SELECT convert_from(edited, 'UTF8') FROM failed_messages WHERE id = $1`, id); got != want {
		t.Errorf("stored %s, expected %s", got, want)
	}

	if got := b.acted(); got != "console edited a typo" {
		t.Errorf("recorded %q", got)
	}

	b.get(entry(id)).has(t, "Payload after the edit", "<del>-    &#34;quantity&#34;: 0", "<ins>+    &#34;quantity&#34;: 2", "a typo")
}

func TestTheEditorSaysWhatTheConsumerWouldDo(t *testing.T) {
	t.Parallel()

	b := open(t)
	id := b.stop("x", order("x", 0), "order.quantity: is 0")

	b.post(entry(id)+"/check", "payload", order("x", `"two"`)).has(t, "The consumer would reject this:", "order.quantity", "<ins>")
	b.post(entry(id)+"/check", "payload", order("x", 2)).has(t, "The consumer would accept this.", "<ins>")
	b.post(entry(id)+"/check", "payload", order("y", 2)).has(t, "changes the key to y", `name="new_key" value="y"`)
	b.post(entry(id)+"/check", "payload", `{"order":`).has(t, "The consumer would reject this:")

	revision := b.get(entry(id)).revision(t)

	p := b.post(entry(id)+"/edit", "revision", revision, "payload", order("x", `"two"`))
	if p.status != http.StatusUnprocessableEntity {
		t.Errorf("an edit that the consumer rejects: %d", p.status)
	}

	p.has(t, "The consumer would reject this:", "&#34;two&#34;")

	if p := b.post(entry(id)+"/edit", "revision", revision, "payload", order("y", 2)); p.status != http.StatusConflict {
		t.Errorf("an edit that changes the key: %d", p.status)
	} else {
		p.has(t, `name="new_key" value="y"`)
	}

	b.post(entry(id)+"/edit", "revision", revision, "payload", order("x", 0)).has(t, "Nothing has changed")

	if got := b.acted(); got != "" {
		t.Errorf("recorded %q", got)
	}

	b.post(entry(id)+"/edit", "revision", revision, "payload", order("y", 2), "new_key", "y").has(t, "The edit is stored.")

	if p := b.post(entry(id)+"/discard", "revision", revision, "why", "x"); p.status != http.StatusPreconditionFailed {
		t.Errorf("an action on a message that has changed: %d", p.status)
	}
}

func TestAMessageIsRequeuedAndDiscarded(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	b.Seed()

	olga := b.as(access.Operator)
	good, bad := b.stop("good", order("good", 1), "it was down"), b.stop("bad", `{}`, "order: is missing")

	p := olga.post(entry(good)+"/requeue", "revision", olga.get(entry(good)).revision(t), "why", "it is up again")
	if !strings.HasPrefix(p.url.Path, "/console/requests/") || p.status != http.StatusOK {
		t.Fatalf("after the requeue: %s %d %s", p.url, p.status, p.html)
	}

	b.WaitForOrder("good", "completed")
	olga.get(p.url.Path).has(t, "All 1 message has been tried.")

	if p := olga.post(entry(bad)+"/discard", "revision", olga.get(entry(bad)).revision(t)); p.status != http.StatusUnprocessableEntity {
		t.Errorf("a discard without a reason: %d", p.status)
	}

	olga.post(entry(bad)+"/discard", "revision", olga.get(entry(bad)).revision(t), "why", "a test").has(t, "The message is discarded.")
	olga.get(entry(bad)).has(t, ">discarded<", "a test")

	if got := b.acted(); got != "token:operator discarded a test; token:operator requeued it is up again" {
		t.Errorf("recorded %q", got)
	}

	if p := olga.get(entry(99)); p.status != http.StatusNotFound {
		t.Errorf("a message that does not exist: %d", p.status)
	}
}

func TestManyMessagesAreEditedAndReplayedInOrder(t *testing.T) {
	t.Parallel()

	b := open(t)
	b.Seed()

	for i := range 12 {
		b.stop(fmt.Sprintf("o%d", i), order(fmt.Sprintf("o%d", i), 0), "order.quantity: is 0, expected at least 1")
	}

	b.stop("other", `{"order":{}}`, "order.id: is missing")

	const filter = "text=order.quantity"

	b.get("/console/failures?"+filter).has(t, `/console/failures/edit?text=order.quantity`, `/console/failures/replay?text=order.quantity`)
	b.get("/console/failures/edit").has(t, "There is no filter: this is every stopped message, 13 messages.")
	b.get("/console/failures/edit?"+filter).has(t, "The filter selects 12 messages.")

	fields := []string{"text", "order.quantity", "patch", `{"order":{"quantity":1}}`, "why", "the shop sent 0"}

	p := b.post("/console/failures/edit", fields...)
	p.has(t, "Dry run: nothing has changed yet", "12 messages would be edited.", "<ins>", `name="apply"`)

	if got := b.acted(); got != "" {
		t.Errorf("a dry run has recorded %q", got)
	}

	if p := b.post("/console/failures/edit", "text", "order.quantity", "patch", "[1]"); p.status != http.StatusUnprocessableEntity {
		t.Errorf("a patch that is no object: %d", p.status)
	} else {
		p.has(t, "expected a JSON object")
	}

	b.post("/console/failures/edit", append(fields, "apply", "1")...).has(t, "12 messages were edited.", "Replay them in order")
	b.post("/console/failures/edit", append(fields, "apply", "1")...).has(t, "Nothing has changed", "12 messages already had these values.")

	p = b.get("/console/failures/replay?" + filter)
	p.has(t, "12 messages would be requeued.")

	p = b.post("/console/failures/replay", "text", "order.quantity", "rate", "3", "why", "corrected")
	if p.url.Query().Get("text") != "order.quantity" || p.url.Query().Get("rate") != "3" {
		t.Fatalf("the replay is at %s", p.url)
	}

	p.has(t, `hx-post="/console/failures/replay/next"`, "Still to requeue")

	parts := 0
	for next := p.url.Query(); ; parts++ {
		part := b.send("POST", "/console/failures/replay/next", strings.NewReader(next.Encode()), "Content-Type", "application/x-www-form-urlencoded")
		if over := part.header.Get("Hx-Redirect"); over != "" {
			b.get(over).has(t, "All messages have been requeued.")

			break
		}

		part.has(t, `hx-post="/console/failures/replay/next"`)
		b.get(p.url.RequestURI()).has(t, "Still to requeue") // as after a reload
	}

	if parts != 1 {
		t.Errorf("12 messages at 3 per second took %d parts of 6, expected 1 before the last", parts)
	}

	pgtest.Eventually(t, "the replay is over", func() bool {
		return strings.Contains(b.get(p.url.RequestURI()).html, "All 12 messages have been tried.")
	})

	order := apptest.Value[string](b.Service, `SELECT string_agg(entry_id::text, ' ' ORDER BY id) FROM operator_actions WHERE action = 'requeued'`)
	if order != "1 2 3 4 5 6 7 8 9 10 11 12" {
		t.Errorf("requeued in the order %s", order)
	}

	if n := apptest.Value[int](b.Service, `SELECT count(*)::int FROM operator_actions WHERE action = 'requeued' AND who = 'console' AND why = 'corrected' AND request_id = $1`, p.url.Query().Get("request")); n != 12 {
		t.Errorf("%d actions are recorded, expected 12", n)
	}

	b.post("/console/failures/replay", "text", "order.quantity").has(t, "Nothing has changed: the filter selects no message.")
}

func TestManyMessagesAreDiscarded(t *testing.T) {
	t.Parallel()

	b := open(t)
	for i := range 3 {
		b.stop(fmt.Sprintf("o%d", i), order("x", 0), "same")
	}

	if p := b.post("/console/failures/discard", "text", "same"); p.status != http.StatusUnprocessableEntity {
		t.Errorf("a discard without a reason: %d", p.status)
	}

	b.post("/console/failures/discard", "text", "same", "why", "tests").has(t, "3 messages were discarded.")
	b.post("/console/failures/discard", "text", "same", "why", "tests").has(t, "Nothing has changed: no message was discarded.")

	if got := b.acted(); got != "console discarded tests; console discarded tests; console discarded tests" {
		t.Errorf("recorded %q", got)
	}
}

func TestViewersReadWithoutPersonalDataAndCannotAct(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	vera := b.as(access.Viewer)
	id := b.stopOn("account.create", "user.created", "alice", `{"user":{"id":"alice","email":"alice@example.com"}}`, `user.name: is "Alice Adams", expected text`)
	plain := b.stop("x", order("x", 0), "order.quantity: is 0")

	for _, path := range []string{"/console/failures", "/console/failures?state=all&topic=user.created", entry(id), "/console/now"} {
		p := vera.get(path)
		p.lacks(t, "Adams", "alice@example.com", "<form method=\"post\"", "<textarea")
	}

	vera.get(entry(id)).has(t, "is hidden from viewers")
	vera.get(entry(plain)).has(t, "product_1")

	// What cannot be seen cannot be searched either.
	vera.get("/console/failures?text=Adams").has(t, "The filter selects no message.")
	vera.get("/console/failures?text=alice%40example").has(t, "The filter selects no message.")
	vera.get("/console/failures?text=alice").has(t, "1 message in 1 group")

	for _, path := range []string{"/edit", "/check", "/requeue", "/discard"} {
		if p := vera.post(entry(plain)+path, "why", "x", "payload", "{}", "revision", "1"); p.status != http.StatusForbidden {
			t.Errorf("%s as a viewer: %d", path, p.status)
		}
	}

	for _, path := range []string{"/console/failures/edit", "/console/failures/discard", "/console/failures/replay", "/console/failures/replay/next"} {
		if p := vera.post(path, "text", "order", "why", "x", "patch", "{}"); p.status != http.StatusForbidden {
			t.Errorf("%s as a viewer: %d", path, p.status)
		}
	}

	if got := b.acted(); got != "" {
		t.Errorf("recorded %q", got)
	}
}
