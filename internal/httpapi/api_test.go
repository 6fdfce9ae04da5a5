package httpapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// note is what the consumer "writer" takes.
type note struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

func (note) Topic() string { return "notes" }
func (n note) Key() string { return n.ID }

func (n note) Validate() error {
	if n.Text == "" {
		return errors.New("text: is missing")
	}

	return nil
}

func check(_ string, payload []byte) (string, error) {
	n, err := event.Decode[note](payload)

	return n.ID, err
}

// rig is the API on a database of its own.
type rig struct {
	t     *testing.T
	pool  *pgxpool.Pool
	store *failed.Store
	url   string
}

func newRig(t *testing.T) *rig {
	t.Helper()

	pool := pgtest.New(t)
	store := failed.NewStore(failed.Config{Release: "1.2.3"}, pool)
	server := httptest.NewServer(httpapi.NewAPI(httpapi.API{
		Failed: store, Orders: order.NewService(pool), Inventory: inventory.NewService(pool), Check: check, Pool: pool, Logger: pgtest.Logger(t),
	}))
	t.Cleanup(server.Close)

	return &rig{t: t, pool: pool, store: store, url: server.URL + httpapi.Prefix}
}

// add stops a note.
func (r *rig) add(key, text string) {
	r.t.Helper()

	err := r.store.Stop(r.t.Context(), failed.Entry{
		Consumer: "writer", Topic: "notes", MessageID: event.NewID(), Key: key, Headers: event.Headers{"binary": "\xff"},
		Payload: fmt.Appendf(nil, `{"id":%q,"text":%q}`, key, text), Reason: event.ReasonFailed, Error: fmt.Sprintf("cannot write %q", key),
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// answer is an answer of the API.
type answer struct {
	status  int
	headers http.Header
	text    string
	body    map[string]any
}

// ask sends a request; headers are pairs of names and values.
func (r *rig) ask(method, path, body string, headers ...string) answer {
	r.t.Helper()

	request, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}

	for pair := range slices.Chunk(headers, 2) {
		name, value := pair[0], pair[len(pair)-1]
		request.Header.Set(name, value)

		if name == "Host" {
			request.Host = value
		}
	}

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()

	data, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}

	a := answer{status: response.StatusCode, headers: response.Header, text: string(data)}

	decoder := json.NewDecoder(bytes.NewReader(data))
	_ = decoder.Decode(&a.body) // not all are JSON

	if a.status >= 400 && (a.headers.Get("Content-Type") != "application/problem+json" || a.body["status"] != float64(a.status) || a.body["detail"] == "") {
		r.t.Errorf("%s %s: %d is no problem+json: %v %s", method, path, a.status, a.headers, data)
	}

	if a.headers.Get("X-Content-Type-Options") != "nosniff" || a.headers.Get("Content-Security-Policy") == "" {
		r.t.Errorf("%s %s: headers lack: %v", method, path, a.headers)
	}

	return a
}

// at returns what is in the body under names of fields and indexes of lists,
// nil if nothing is.
func (a answer) at(path ...any) any {
	var value any = a.body

	for _, step := range path {
		object, _ := value.(map[string]any)
		list, _ := value.([]any)
		value = nil

		switch step := step.(type) {
		case string:
			value = object[step]
		case int:
			if step < len(list) {
				value = list[step]
			}
		}
	}

	return value
}

func TestProblemsAreProblemJSON(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/nowhere", "", 404, "no such address"},
		{"PUT", "/poison/entries/1", "", 405, "PUT is not possible here, only GET, HEAD, PATCH"},
		{"DELETE", "/version", "", 405, "only GET, HEAD"},
		{"GET", "/poison/entries/9", "", 404, "there is no failed message 9"},
		{"GET", "/poison/entries/x", "", 422, "path.id"},
		{"GET", "/poison/entries/99999999999999999999", "", 422, "path.id"},
		{"GET", "/poison/entries?limit=0", "", 422, "query.limit"},
		{"GET", "/poison/entries?cursor=nonsense", "", 422, "is no cursor"},
		{"GET", "/poison/entries?since=yesterday", "", 422, "query.since"},
		{"GET", "/orders/nope", "", 404, "there is no order nope"},
		{"GET", "/orders/%00", "", 404, "there is no order"},
		{"POST", "/poison/requeue", "{", 400, "JSON"},
		{"POST", "/poison/requeue", "{}", 422, "nothing is done by oversight"},
		{"POST", "/poison/requeue", `{"all":true,"topic":"notes"}`, 422, "nothing is done by oversight"},
		{"POST", "/poison/requeue", `{"topik":"notes"}`, 422, "body.topik"},
		{"POST", "/poison/discard", `{"all":true}`, 422, "required property why"},
		{"POST", "/poison/entries/1/discard", `{"why":"  "}`, 422, "why: is missing"},
		{"PATCH", "/poison/entries/1", `{"payload":{"text":"{}"}}`, 422, "text: is missing"},
		{"PATCH", "/poison/entries/1", `{"payload":{}}`, 422, "expected either text or base64"},
		{"POST", "/poison/entries/9/requeue", `{}`, 404, "there is no failed message 9"},
	} {
		a := r.ask(c.method, c.path, c.body, "Content-Type", "application/json")
		if a.status != c.status || !strings.Contains(a.text, c.says) {
			t.Errorf("%s %s: got %d, expected %d with %q: %s", c.method, c.path, a.status, c.status, c.says, a.text)
		}
	}

	if a := r.ask("PUT", "/version", ""); a.headers.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow is %q", a.headers.Get("Allow"))
	}

	if a := r.ask("POST", "/poison/requeue", strings.Repeat(" ", 7<<20), "Content-Type", "application/json"); a.status != 413 {
		t.Errorf("a huge body: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/poison/requeue", "<x/>", "Content-Type", "text/xml"); a.status != 415 {
		t.Errorf("XML: %d %s", a.status, a.text)
	}
}

func TestOtherSitesAreKeptOut(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	for name, headers := range map[string][]string{
		"another origin":   {"Origin", "https://evil.example"},
		"a fetch metadata": {"Sec-Fetch-Site", "cross-site"},
		"rebinding":        {"Host", "evil.example", "Origin", "http://evil.example"},
	} {
		if a := r.ask("POST", "/poison/discard", `{"all":true,"why":"x"}`, append(headers, "Content-Type", "application/json")...); a.status != 403 {
			t.Errorf("%s: %d %s", name, a.status, a.text)
		}
	}

	if a := r.ask("GET", "/poison/entries", "", "Host", "evil.example"); a.status != 403 {
		t.Errorf("reading by another name: %d", a.status)
	}

	if a := r.ask("GET", "/version", "", "Host", "[::1]:9"); a.status != 200 || a.body["version"] != "1.2.3" {
		t.Errorf("loopback: %d %s", a.status, a.text)
	}
}

func TestPagesLeadFromOneToTheNext(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for i := range 5 {
		r.add(fmt.Sprint("k", i), "x")
	}

	if err := inventory.NewService(r.pool).Seed(t.Context(), map[string]int64{"a": 1, `b " c`: 2, "d": 3}); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		path, list, id string
		want           []any
	}{
		{"/poison/entries?limit=2&topic=notes", "entries", "id", []any{5.0, 4.0, 3.0, 2.0, 1.0}},
		{"/poison/entries?limit=5", "entries", "id", []any{5.0, 4.0, 3.0, 2.0, 1.0}},
		{"/poison/entries?topic=others", "entries", "id", nil},
		{"/poison/entries?key=%00%ff", "entries", "id", nil},
		{"/stock?limit=1", "stock", "product_id", []any{"a", `b " c`, "d"}},
	} {
		var got []any

		for path := c.path; path != ""; {
			a := r.ask("GET", path, "")
			if a.status != 200 {
				t.Fatalf("%s: %d %s", path, a.status, a.text)
			}

			for i := 0; a.at(c.list, i) != nil; i++ {
				got = append(got, a.at(c.list, i, c.id))
			}

			link, _, _ := strings.Cut(strings.TrimPrefix(a.headers.Get("Link"), "<"+httpapi.Prefix), ">")
			if (link == "") != (a.body["next"] == nil) {
				t.Errorf("%s: Link %q, next %v", path, a.headers.Get("Link"), a.body["next"])
			}

			path = link
		}

		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.path, diff)
		}
	}
}

func TestGroupsArePagesToo(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("k1", "x")
	r.add("k2", "x")

	if err := r.store.Stop(t.Context(), failed.Entry{Consumer: "writer", MessageID: event.NewID(), Reason: event.ReasonInvalid, Error: "text: is missing"}); err != nil {
		t.Fatal(err)
	}

	first := r.ask("GET", "/poison/groups?limit=1", "")
	second := r.ask("GET", "/poison/groups?limit=1&cursor="+fmt.Sprint(first.body["next"]), "")

	if first.at("groups", 0, "entries") != 2.0 || first.at("groups", 0, "keys") != 2.0 || first.at("groups", 0, "last_release") != "1.2.3" ||
		second.at("groups", 0, "cause") != "text: is missing" || second.body["next"] != nil {
		t.Errorf("got %s and %s", first.text, second.text)
	}
}

func TestAnEntryIsMendedAndRequeued(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	shown := r.ask("GET", "/poison/entries/1", "")
	tag := shown.headers.Get("ETag")

	if text := shown.at("payload", "text"); text != `{"id":"a","text":"x"}` || shown.body["state"] != "stopped" || tag == "" ||
		!strings.Contains(shown.text, `"binary":{"base64":"/w=="}`) {
		t.Fatalf("got %s, ETag %s", shown.text, tag)
	}

	if a := r.ask("GET", "/poison/entries/1", "", "If-None-Match", `"x", W/`+tag); a.status != 304 || a.text != "" || a.headers.Get("ETag") != tag {
		t.Errorf("unchanged: %d %q", a.status, a.text)
	}

	const mend = `{"payload":{"text":"{\"id\":\"a\",\"text\":\"y\"}"},"why":"typo"}`

	if a := r.ask("PATCH", "/poison/entries/1", mend, "If-Match", `"1-99"`); a.status != 412 {
		t.Errorf("another ETag: %d %s", a.status, a.text)
	}

	mended := r.ask("PATCH", "/poison/entries/1", mend, "If-Match", tag, "X-Millrace-Operator", "bob")
	if mended.status != 200 || mended.body["state"] != "edited" || mended.headers.Get("ETag") == tag {
		t.Fatalf("got %d %s", mended.status, mended.text)
	}

	if a := r.ask("GET", "/poison/entries/1", "", "If-None-Match", tag); a.status != 200 {
		t.Errorf("changed: %d", a.status)
	}

	if a := r.ask("GET", "/poison/entries/1/diff", ""); !strings.Contains(a.text, `+  "text": "y"`) {
		t.Errorf("diff: %s", a.text)
	}

	for which, want := range map[string]string{"original": `{"id":"a","text":"x"}`, "edited": `{"id":"a","text":"y"}`} {
		a := r.ask("GET", "/poison/entries/1/payload?which="+which, "")
		if a.text != want || a.headers.Get("Content-Type") != "text/plain" || !strings.HasPrefix(a.headers.Get("Content-Disposition"), "attachment;") {
			t.Errorf("%s: %v %s", which, a.headers, a.text)
		}
	}

	if a := r.ask("POST", "/poison/entries/1/requeue", `{"why":"go"}`, "If-Match", tag); a.status != 412 {
		t.Errorf("an old ETag: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/poison/entries/1/requeue", `{"why":"go"}`, "If-Match", mended.headers.Get("ETag")); a.status != 200 || a.body["state"] != "waiting" {
		t.Errorf("got %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/poison/entries/1/requeue", `{"why":"go"}`); a.status != 409 {
		t.Errorf("once more: %d %s", a.status, a.text)
	}

	actions := r.ask("GET", "/poison/entries/1/actions", "")
	if actions.at("actions", 0, "who") != "bob" || actions.at("actions", 0, "why") != "typo" || actions.at("actions", 1, "who") != "http" || actions.at("actions", 2) != nil {
		t.Errorf("actions: %s", actions.text)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages WHERE state = 'waiting' AND consumer = 'writer' AND edited = convert_to('{"id":"a","text":"y"}', 'UTF8')`); n != 1 {
		t.Errorf("%d messages wait", n)
	}
}

func TestManyAreRequeuedInParts(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "") // cannot be decoded
	r.add("b", "x")
	r.add("a", "x") // behind the first
	r.add("c", "x")

	dry := r.ask("POST", "/poison/requeue", `{"topic":"notes","dry_run":true}`)
	if dry.body["done"] != 2.0 || dry.body["refused"] != 2.0 || dry.body["dry_run"] != true {
		t.Errorf("a dry run: %s", dry.text)
	}

	first := r.ask("POST", "/poison/requeue", `{"topic":"notes","limit":2}`)
	if first.body["done"] != 1.0 || first.body["refused"] != 1.0 || first.body["next"] != 2.0 {
		t.Errorf("got %s", first.text)
	}

	second := r.ask("POST", "/poison/requeue", `{"topic":"notes","limit":2,"after":2}`)
	if second.body["done"] != 1.0 || second.body["refused"] != 1.0 || second.body["next"] != nil {
		t.Errorf("got %s", second.text)
	}

	if a := r.ask("POST", "/poison/entries/3/requeue", `{}`); a.status != 409 || !strings.Contains(a.text, "behind message 1") {
		t.Errorf("got %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/poison/discard", `{"ids":[1,3],"why":"test data"}`); a.body["done"] != 2.0 {
		t.Errorf("got %s", a.text)
	}
}

func TestTheSameRequestGetsTheSameAnswer(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")
	r.add("b", "x")

	const body = `{"ids":[1],"why":"go"}`

	var (
		running  sync.WaitGroup
		statuses [8]int
	)

	for i := range statuses { // at once
		running.Go(func() {
			statuses[i] = r.ask("POST", "/poison/requeue", body, "Idempotency-Key", "one").status
		})
	}

	running.Wait()

	for _, status := range statuses {
		if status != 200 && status != 409 {
			t.Errorf("got %v", statuses)
		}
	}

	again := r.ask("POST", "/poison/requeue", body, "Idempotency-Key", "one")
	if again.status != 200 || again.body["done"] != 1.0 || again.headers.Get("Idempotency-Replayed") != "true" ||
		again.headers.Get("Content-Type") != "application/json" {
		t.Errorf("got %d %v %s", again.status, again.headers, again.text)
	}

	if a := r.ask("POST", "/poison/requeue", `{"ids":[2]}`, "Idempotency-Key", "one"); a.status != 422 || !strings.Contains(a.text, "another request") {
		t.Errorf("another body: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/poison/requeue", body, "Idempotency-Key", "two"); a.body["done"] != 0.0 {
		t.Errorf("another key: %s", a.text)
	}

	if a := r.ask("POST", "/poison/requeue", body, "Idempotency-Key", strings.Repeat("k", 256)); a.status != 422 {
		t.Errorf("a long key: %d %s", a.status, a.text)
	}

	if _, err := r.pool.Exec(t.Context(), `UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'one'`); err != nil {
		t.Fatal(err)
	}

	if a := r.ask("POST", "/poison/requeue", body, "Idempotency-Key", "one"); a.body["done"] != 0.0 {
		t.Errorf("after a day: %s", a.text)
	}

	if _, err := r.pool.Exec(t.Context(), `UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'one'`); err != nil {
		t.Fatal(err)
	}

	if _, err := httpapi.ExpireAnswers(t.Context(), r.pool); err != nil {
		t.Fatal(err)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM idempotency_keys`); n != 1 {
		t.Errorf("%d answers are kept", n)
	}
}

func TestAPanicIsAProblem(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	server := httptest.NewServer(httpapi.NewAPI(httpapi.API{ // without orders
		Failed: failed.NewStore(failed.DefaultConfig(), pool), Check: check, Pool: pool, Logger: slog.New(slog.DiscardHandler),
	}))
	t.Cleanup(server.Close)

	r := &rig{t: t, url: server.URL + httpapi.Prefix}
	if a := r.ask("GET", "/orders/x", ""); a.status != 500 || !strings.Contains(a.text, "the log says why") {
		t.Errorf("got %d %s", a.status, a.text)
	}
}

func TestTheAPIDescribesItself(t *testing.T) {
	t.Parallel()

	a := newRig(t).ask("GET", "/openapi.json", "")
	if a.status != 200 || !strings.HasPrefix(fmt.Sprint(a.body["openapi"]), "3.1") || !strings.Contains(a.text, `"/poison/entries/{id}/requeue"`) {
		t.Errorf("got %d %.200s", a.status, a.text)
	}
}

func TestRequestsWithIdempotencyKeysLeaveConnectionsForThemselves(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	requests := 4 * int(r.pool.Config().MaxConns)

	var (
		all      sync.WaitGroup
		answered atomic.Int32
	)

	for i := range requests {
		all.Go(func() {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/poison/entries/1/requeue", strings.NewReader(`{"why":"it is mended"}`))
			if err != nil {
				t.Error(err)

				return
			}

			request.Header.Set("Content-Type", "application/json")
			request.Header.Set("Idempotency-Key", fmt.Sprint("key ", i))

			response, err := http.DefaultClient.Do(request)
			if err != nil {
				return // the end of the test
			}

			_ = response.Body.Close()

			if response.StatusCode == http.StatusNotFound {
				answered.Add(1)
			}
		})
	}

	pgtest.Eventually(t, "all are answered", func() bool { return int(answered.Load()) == requests })
	all.Wait()
}
