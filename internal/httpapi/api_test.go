package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// note is the payload of the consumer "writer".
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

// thing is a resource registered by the tests, as the shop registers its own.
type thing struct {
	Name string `json:"name"`
}

// things registers a list whose names need escaping in cursors.
func things(api *httpapi.API) {
	all := []thing{{"a"}, {`b " c`}, {"d"}}

	httpapi.Get(api, access.Viewer, "/things", "List things", func(_ context.Context, in *httpapi.Paging) (*httpapi.List[thing], error) {
		var after string
		if err := in.After("%q", &after); err != nil {
			return nil, err
		}

		i := slices.IndexFunc(all, func(t thing) bool { return t.Name > after })
		list := all[max(i, 0):]

		return httpapi.Page(in, list[:min(len(list), in.Limit+1)], func(t thing) string { return fmt.Sprintf("%q", t.Name) }), nil
	})
	httpapi.Get(api, access.Viewer, "/panic", "Panic", func(context.Context, *struct{}) (*httpapi.List[thing], error) { panic("no things") })
	httpapi.Get(api, access.Viewer, "/things/{name}", "Show a thing", func(_ context.Context, in *struct {
		Name string `path:"name"`
	},
	) (*httpapi.List[thing], error) {
		return nil, event.Missing("thing", in.Name)
	})
}

// rig is the API on its own database, with the consumer "writer".
type rig struct {
	t     *testing.T
	pool  *pgxpool.Pool
	store *failed.Store
	url   string
}

func newRig(t *testing.T) *rig {
	t.Helper()

	pool, logger, registry := pgtest.New(t), pgtest.Logger(t), prometheus.NewRegistry()
	store := failed.NewStore(failed.Config{Release: "1.2.3"}, pool)
	dependencies := breaker.NewSet(logger, registry)

	router, err := consumer.NewRouter(consumer.DefaultConfig(), pool, store, dependencies,
		outbox.NewRelay(outbox.DefaultConfig(), pool, logger, registry), nil, logger, registry)
	if err != nil {
		t.Fatal(err)
	}

	consumer.On(router, "writer", func(context.Context, pgx.Tx, event.Event[note]) ([]event.Outgoing, error) { return nil, nil })

	brokers, err := broker.NewSet(broker.DefaultConfig(), logger)
	if err != nil {
		t.Fatal(err)
	}

	operator := &operate.Operator{Brokers: brokers, Pool: pool, Router: router, Failed: store, Dependencies: dependencies, StartedAt: time.Now()}
	server, err := httpapi.NewServer(httpapi.Config{Addr: "127.0.0.1:0"}, httpapi.HealthConfig{Addr: "127.0.0.1:0"}, pool, logger, registry)
	if err != nil {
		t.Fatal(err)
	}

	server.Handle(httpapi.Prefix+"/", access.Viewer, httpapi.NewAPI(operator, logger, things))
	server.HandlePublic("POST /hook", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "shop.example" {
			w.WriteHeader(http.StatusAccepted)
		}
	}))

	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = server.Close(context.Background()) })

	return &rig{t: t, pool: pool, store: store, url: "http://" + server.Addr() + httpapi.Prefix}
}

// add stores a stopped note.
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

// answer is a response from the API.
type answer struct {
	status  int
	headers http.Header
	text    string
	body    map[string]any
}

// ask sends a request; headers alternates names and values.
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
	_ = decoder.Decode(&a.body) // not all responses are JSON

	if a.status >= 400 && (a.headers.Get("Content-Type") != "application/problem+json" || a.body["status"] != float64(a.status) || a.body["detail"] == "") {
		r.t.Errorf("%s %s: %d is not problem+json: %v %s", method, path, a.status, a.headers, data)
	}

	if a.headers.Get("X-Content-Type-Options") != "nosniff" || a.headers.Get("Content-Security-Policy") == "" {
		r.t.Errorf("%s %s: missing headers: %v", method, path, a.headers)
	}

	return a
}

// at returns the value in the body at the given field names and list indexes, or nil.
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
		{"GET", "/nowhere", "", 404, "no such path"},
		{"PUT", "/failed/1", "", 405, "PUT is not allowed here, only GET, HEAD, PATCH"},
		{"DELETE", "/version", "", 405, "only GET, HEAD"},
		{"GET", "/failed/9", "", 404, "there is no failed message 9"},
		{"GET", "/failed/x", "", 422, "path.id"},
		{"GET", "/failed/99999999999999999999", "", 422, "path.id"},
		{"GET", "/failed?limit=0", "", 422, "query.limit"},
		{"GET", "/failed?cursor=nonsense", "", 422, "is not a cursor"},
		{"GET", "/failed?since=yesterday", "", 422, "query.since"},
		{"GET", "/things/nope", "", 404, `"type":"urn:millrace:problem:not-found"`},
		{"GET", "/things/%00", "", 422, "path: contains the character U+0000"},
		{"GET", "/things/%FF", "", 422, "path: is not UTF-8"},
		{"GET", "/failed?key=%00", "", 422, "query.key: contains the character U+0000"},
		{"GET", "/failed?%FF=1", "", 422, `query.\\xff: is not UTF-8`},
		{"GET", "/failed?key=%zz", "", 422, "query: invalid URL escape"},
		{"GET", "/failed?since=2026-01-31T12:00%2B0000", "", 200, "items"},
		{"GET", "/failed?since=2026-01-31", "", 200, "items"},
		{"GET", "/failed?since=2026-01-31T12:00:00+01:00", "", 422, "expected a time such as 2026-01-31T12:00:00Z"}, // + is a space
		{"POST", "/failed/requeue", `{"key":"\u0000"}`, 400, "contains the character U+0000"},
		{"POST", "/failed/requeue", "{\"key\":\"\xff\"}", 400, "not valid JSON"},
		{"POST", "/failed/requeue", `{"all":false,"all":true}`, 400, "duplicate"},
		{"GET", "/waiting/1", "", 404, "there is no waiting message 1"},
		{"POST", "/waiting/retry", "{}", 422, "nothing is selected"},
		{"POST", "/waiting/1/skip", "{}", 404, "there is no waiting message 1"},
		{"POST", "/consumers/writre/pause", "{}", 404, "did you mean writer?"},
		{"GET", "/conversations/x", "", 404, "there is no message, stream or failed message with the id or key x"},
		{"GET", "/conversations/00000000-0000-7000-8000-000000000000", "", 404, "there is no message, stream or failed message with the id or key 0"},
		{"GET", "/topics/notse/messages", "", 404, "did you mean notes?"},
		{"GET", "/events?stream=nope", "", 404, "there is no stream nope"},
		{"GET", "/events?cursor=nonsense", "", 422, "is not a cursor"},
		{"GET", "/activity?action=nothing", "", 422, "query.action"},
		{"POST", "/failed/requeue", "{", 400, "JSON"},
		{"POST", "/failed/requeue", "{}", 422, "nothing is selected"},
		{"POST", "/failed/requeue", `{"all":true,"topic":"notes"}`, 422, "all cannot be combined"},
		{"POST", "/failed/requeue", `{"topik":"notes"}`, 422, "body.topik"},
		{"POST", "/failed/discard", `{"all":true}`, 422, "required property why"},
		{"POST", "/failed/1/discard", `{"why":"  "}`, 422, "why: is missing"},
		{"PATCH", "/failed/1", `{"payload":{"text":"{}"}}`, 422, "text: is missing"},
		{"PATCH", "/failed/1", `{"payload":{}}`, 422, "expected either text or base64"},
		{"POST", "/failed/9/requeue", `{}`, 404, "there is no failed message 9"},
	} {
		a := r.ask(c.method, c.path, c.body, "Content-Type", "application/json")
		if a.status != c.status || !strings.Contains(a.text, c.says) {
			t.Errorf("%s %s: got %d, expected %d with %q: %s", c.method, c.path, a.status, c.status, c.says, a.text)
		}
	}
}

func TestBodiesThatAreTooLargeOrNotJSONAreRefused(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	if a := r.ask("POST", "/failed/requeue", strings.Repeat(" ", 7<<20), "Content-Type", "application/json"); a.status != 413 {
		t.Errorf("a huge body: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/requeue", "<x/>", "Content-Type", "text/xml"); a.status != 415 {
		t.Errorf("XML: %d %s", a.status, a.text)
	}
}

func TestAMethodThatIsNotAllowedIsAnsweredWithThoseThatAre(t *testing.T) {
	t.Parallel()

	if a := newRig(t).ask("PUT", "/version", ""); a.status != 405 || a.headers.Get("Allow") != "GET, HEAD" {
		t.Errorf("got %d, Allow is %q", a.status, a.headers.Get("Allow"))
	}
}

func TestCrossSiteRequestsAreRefused(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	for name, headers := range map[string][]string{
		"another origin":   {"Origin", "https://evil.example"},
		"a fetch metadata": {"Sec-Fetch-Site", "cross-site"},
		"rebinding":        {"Host", "evil.example", "Origin", "http://evil.example"},
	} {
		if a := r.ask("POST", "/failed/discard", `{"all":true,"why":"x"}`, append(headers, "Content-Type", "application/json")...); a.status != 403 {
			t.Errorf("%s: %d %s", name, a.status, a.text)
		}
	}

	if a := r.ask("GET", "/failed", "", "Host", "evil.example"); a.status != 403 {
		t.Errorf("reading with another Host: %d", a.status)
	}

	if a := r.ask("GET", "/version", "", "Host", "[::1]:9"); a.status != 200 || a.body["version"] != "1.2.3" {
		t.Errorf("loopback: %d %s", a.status, a.text)
	}
}

func TestEveryEndpointForOperatorsChecksTheHost(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.url = strings.TrimSuffix(r.url, httpapi.Prefix)

	for _, path := range []string{httpapi.Prefix + "/version", httpapi.Prefix + "/nothing", "/nothing"} {
		if a := r.ask("GET", path, "", "Host", "evil.example"); a.status != 403 {
			t.Errorf("%s: got %d", path, a.status)
		}
	}

	for _, host := range []string{"localhost", "localhost:9464", "127.0.0.1", "127.0.0.2:1", "[::1]:9464", "[::1]"} {
		if a := r.ask("GET", httpapi.Prefix+"/version", "", "Host", host); a.status != 200 {
			t.Errorf("%s: got %d", host, a.status)
		}
	}

	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/hook", nil)
	if err != nil {
		t.Fatal(err)
	}

	request.Host = "shop.example" // as a proxy forwards it

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()

	if response.StatusCode != http.StatusAccepted {
		t.Errorf("got %s", response.Status)
	}
}

func TestEachPageLinksToTheNext(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for i := range 5 {
		r.add(fmt.Sprint("k", i), "x")
	}

	for _, c := range []struct {
		path, id string
		want     []any
	}{
		{"/failed?limit=2&topic=notes", "id", []any{5.0, 4.0, 3.0, 2.0, 1.0}},
		{"/failed?limit=5", "id", []any{5.0, 4.0, 3.0, 2.0, 1.0}},
		{"/failed?reason=panic", "id", nil},
		{"/failed?key=%22%5Cx00%5Cxff%22", "id", nil},
		{"/things?limit=1", "name", []any{"a", `b " c`, "d"}},
	} {
		var got []any

		for path := c.path; path != ""; {
			a := r.ask("GET", path, "")
			if a.status != 200 {
				t.Fatalf("%s: %d %s", path, a.status, a.text)
			}

			for i := 0; a.at("items", i) != nil; i++ {
				got = append(got, a.at("items", i, c.id))
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

func TestUnknownNamesAreProblems(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/failed?topic=nots", "", 404, "there is no topic nots; did you mean notes?"},
		{"GET", "/failed?consumer=writr", "", 404, "there is no consumer writr; did you mean writer?"},
		{"GET", "/failed?group=x", "", 404, "there is no group x"},
		{"GET", "/failed?reason=pannic", "", 422, "validation failed"},
		{"GET", "/failed?state=stoped", "", 422, "validation failed"},
		{"GET", "/failed?topc=notes", "", 422, "validation failed"}, // would list everything
		{"GET", "/failed/groups?topic=nots", "", 404, "did you mean notes?"},
		{"GET", "/failed/counts?by=topic&topic=nots", "", 404, "did you mean notes?"},
		{"GET", "/failed/counts?by=colour", "", 422, "validation failed"},
		{"GET", "/waiting?consumer=writr", "", 404, "did you mean writer?"},
		{"GET", "/activity?action=requeue", "", 422, "validation failed"},
		{"GET", "/topics/nots/messages", "", 404, "did you mean notes?"},
		{"POST", "/waiting/retry", `{"consumer":"writr"}`, 404, "did you mean writer?"},
		{"POST", "/failed/requeue", `{"topic":"nots"}`, 404, "did you mean notes?"},
		{"POST", "/failed/discard", `{"consumer":"writr","why":"x"}`, 404, "did you mean writer?"},
		{"POST", "/failed/requeue", `{"reason":"pannic"}`, 422, "validation failed"},
		{"POST", "/consumers/writr/pause", `{}`, 404, "did you mean writer?"},
	} {
		if a := r.ask(c.method, c.path, c.body, "Content-Type", "application/json"); a.status != c.status || !strings.Contains(a.text, c.says) {
			t.Errorf("%s %s: got %d %s, expected %d %q", c.method, c.path, a.status, a.text, c.status, c.says)
		}
	}
}

func TestAListWithoutPagesSaysHowManyThereAre(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for i := range 5 {
		r.add(fmt.Sprint("k", i), "x")
	}

	for path, total := range map[string]any{
		"/failed/counts?by=key&limit=2": 5.0,
		"/failed/counts?by=key&limit=5": nil,
		"/failed/counts?by=topic":       nil,
	} {
		if a := r.ask("GET", path, ""); a.status != 200 || a.at("total") != total {
			t.Errorf("%s: got %d, total %v, expected %v", path, a.status, a.at("total"), total)
		}
	}
}

func TestGroupsArePaged(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("k1", "x")
	r.add("k2", "x")

	if err := r.store.Stop(t.Context(), failed.Entry{Consumer: "writer", MessageID: event.NewID(), Reason: event.ReasonInvalid, Error: "text: is missing"}); err != nil {
		t.Fatal(err)
	}

	first := r.ask("GET", "/failed/groups?limit=1", "")
	second := r.ask("GET", "/failed/groups?limit=1&cursor="+fmt.Sprint(first.body["next"]), "")

	if first.at("items", 0, "entries") != 2.0 || first.at("items", 0, "keys") != 2.0 || first.at("items", 0, "last_release") != "1.2.3" ||
		second.at("items", 0, "cause") != "text: is missing" || second.body["next"] != nil {
		t.Errorf("got %s and %s", first.text, second.text)
	}
}

func TestAFailedMessageIsShownWithItsTag(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	shown := r.ask("GET", "/failed/1", "")
	tag := shown.headers.Get("ETag")

	if text := shown.at("payload", "text"); text != `{"id":"a","text":"x"}` || shown.body["state"] != "stopped" || shown.body["is_edited"] != false || tag == "" ||
		!strings.Contains(shown.text, `"binary":{"base64":"/w=="}`) {
		t.Fatalf("got %s, ETag %s", shown.text, tag)
	}

	if a := r.ask("GET", "/failed/1", "", "If-None-Match", `"x", W/`+tag); a.status != 304 || a.text != "" || a.headers.Get("ETag") != tag {
		t.Errorf("unchanged: %d %q", a.status, a.text)
	}
}

// edit changes the text of message 1, whose key is a, to y. It returns the message's tags
// before and after the edit.
func (r *rig) edit() (before, after string) {
	r.t.Helper()

	const edit = `{"payload":{"text":"{\"id\":\"a\",\"text\":\"y\"}"},"why":"typo"}`

	before = r.ask("GET", "/failed/1", "").headers.Get("ETag")

	if a := r.ask("PATCH", "/failed/1", edit, "If-Match", `"1-99"`); a.status != 412 {
		r.t.Errorf("another ETag: %d %s", a.status, a.text)
	}

	edited := r.ask("PATCH", "/failed/1", edit, "If-Match", before, "X-Millrace-Operator", "bob")
	after = edited.headers.Get("ETag")

	if edited.status != 200 || edited.body["is_edited"] != true || after == before {
		r.t.Fatalf("got %d %s", edited.status, edited.text)
	}

	return before, after
}

func TestAnEditedMessageIsShownBesideTheOriginal(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	before, _ := r.edit()

	if a := r.ask("GET", "/failed/1", "", "If-None-Match", before); a.status != 200 {
		t.Errorf("changed: %d", a.status)
	}

	if a := r.ask("GET", "/failed/1/diff", ""); !strings.Contains(a.text, `+  "text": "y"`) {
		t.Errorf("diff: %s", a.text)
	}

	for which, want := range map[string]string{"original": `{"id":"a","text":"x"}`, "edited": `{"id":"a","text":"y"}`} {
		a := r.ask("GET", "/failed/1/payload?which="+which, "")
		if a.text != want || a.headers.Get("Content-Type") != "text/plain" || !strings.HasPrefix(a.headers.Get("Content-Disposition"), "attachment;") {
			t.Errorf("%s: %v %s", which, a.headers, a.text)
		}
	}
}

func TestAnEditedMessageIsRequeuedOnce(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")

	before, after := r.edit()

	if a := r.ask("POST", "/failed/1/requeue", `{"why":"go"}`, "If-Match", before); a.status != 412 {
		t.Errorf("an old ETag: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/1/requeue", `{"why":"go"}`, "If-Match", after); a.status != 200 || a.body["state"] != "waiting" {
		t.Errorf("got %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/1/requeue", `{"why":"go"}`); a.status != 409 {
		t.Errorf("a second requeue: %d %s", a.status, a.text)
	}

	actions := r.ask("GET", "/failed/1/actions", "")
	if actions.at("items", 0, "who") != "bob" || actions.at("items", 0, "why") != "typo" || actions.at("items", 1, "who") != "http" || actions.at("items", 2) != nil {
		t.Errorf("actions: %s", actions.text)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages WHERE state = 'waiting' AND edited = convert_to('{"id":"a","text":"y"}', 'UTF8')`); n != 1 {
		t.Errorf("%d messages wait with the edited payload", n)
	}
}

func TestManyMessagesAreRequeuedInParts(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "") // cannot be decoded
	r.add("b", "x")
	r.add("a", "x") // blocked by the first
	r.add("c", "x")

	dry := r.ask("POST", "/failed/requeue", `{"topic":"notes","dry_run":true}`)
	if dry.body["done"] != 2.0 || dry.body["refused"] != 2.0 || dry.body["dry_run"] != true {
		t.Errorf("a dry run: %s", dry.text)
	}

	first := r.ask("POST", "/failed/requeue", `{"topic":"notes","limit":2}`)
	if first.body["done"] != 1.0 || first.body["refused"] != 1.0 || first.body["next"] != 2.0 {
		t.Errorf("got %s", first.text)
	}

	second := r.ask("POST", "/failed/requeue", `{"topic":"notes","limit":2,"after":2}`)
	if second.body["done"] != 1.0 || second.body["refused"] != 1.0 || second.body["next"] != nil {
		t.Errorf("got %s", second.text)
	}

	if a := r.ask("POST", "/failed/3/requeue", `{}`); a.status != 409 || !strings.Contains(a.text, "blocked by message 1") {
		t.Errorf("got %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/failed/discard", `{"ids":[1,3],"why":"test data"}`); a.body["done"] != 2.0 {
		t.Errorf("got %s", a.text)
	}
}

func TestARepeatedRequestChangesNothing(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")
	r.add("b", "x")

	var (
		running sync.WaitGroup
		done    atomic.Int32
	)

	for range 8 { // concurrently
		running.Go(func() {
			if a := r.ask("POST", "/failed/requeue", `{"ids":[1],"why":"go"}`); a.status == 200 && a.body["done"] == 1.0 {
				done.Add(1)
			}
		})
	}

	running.Wait()

	if n := done.Load(); n != 1 {
		t.Errorf("message 1 was requeued %d times", n)
	}

	for range 2 {
		if a := r.ask("POST", "/failed/discard", `{"ids":[2],"why":"junk"}`); a.status != 200 {
			t.Errorf("got %d %s", a.status, a.text)
		}
	}

	if a := r.ask("GET", "/activity?action=discarded", ""); a.at("items", 0, "why") != "junk" || a.at("items", 1) != nil {
		t.Errorf("activity: %s", a.text)
	}
}

func TestWaitingKeysAreRetriedAndSkipped(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add("a", "x")
	r.add("a", "y")

	if a := r.ask("POST", "/failed/requeue", `{"key":"a"}`); a.body["done"] != 2.0 {
		t.Fatalf("got %s", a.text)
	}

	keys := r.ask("GET", "/waiting?consumer=writer", "")
	if keys.at("items", 0, "id") != 1.0 || keys.at("items", 0, "blocked") != 1.0 || keys.at("items", 0, "due_at") == nil || keys.at("items", 1) != nil {
		t.Errorf("keys: %s", keys.text)
	}

	queue := r.ask("GET", "/waiting/2", "")
	if queue.at("items", 0, "payload", "text") != `{"id":"a","text":"x"}` || queue.at("items", 1, "id") != 2.0 {
		t.Errorf("queue: %s", queue.text)
	}

	if a := r.ask("POST", "/waiting/retry", `{"key":"a","why":"now"}`); a.status != 200 || a.body["due"] != 1.0 {
		t.Errorf("retry: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/waiting/2/skip", `{}`); a.status != 409 || !strings.Contains(a.text, "blocked by message 1") {
		t.Errorf("skipping the second: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/waiting/1/skip", `{"why":"later"}`, "X-Millrace-Operator", "bob"); a.status != 200 || a.body["state"] != "stopped" {
		t.Errorf("skip: %d %s", a.status, a.text)
	}

	activity := r.ask("GET", "/activity?limit=1", "")
	if activity.at("items", 0, "action") != "skipped" || activity.at("items", 0, "who") != "bob" || activity.body["next"] == nil {
		t.Errorf("activity: %s", activity.text)
	}

	if a := r.ask("GET", "/failed/counts?by=key&state=all", ""); a.at("items", 0, "value") != "a" || a.at("items", 0, "entries") != 2.0 {
		t.Errorf("counts: %s", a.text)
	}
}

func TestConsumersArePausedAndResumed(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for _, c := range []struct {
		verb    string
		changed bool
		pause   any
	}{{"pause", true, "maintenance"}, {"pause", false, "maintenance"}, {"resume", true, nil}, {"resume", false, nil}} {
		if a := r.ask("POST", "/consumers/writer/"+c.verb, `{"why":"maintenance"}`); a.status != 200 || a.body["changed"] != c.changed {
			t.Errorf("%s: %d %s", c.verb, a.status, a.text)
		}

		if a := r.ask("GET", "/consumers", ""); a.at("items", 0, "consumer") != "writer" || a.at("items", 0, "pause", "why") != c.pause {
			t.Errorf("after %s: %s", c.verb, a.text)
		}
	}
}

func TestEventsAndConversationsAreRead(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	id := event.NewID()

	for i := range 3 {
		if _, err := r.pool.Exec(t.Context(), `INSERT INTO events (stream, version, type, data, message_id) VALUES ('s', $1, 'Noted', '{"n":1.50}', $2)`, i+1, id); err != nil {
			t.Fatal(err)
		}
	}

	var versions []any

	for path := "/events?limit=2"; path != ""; {
		a := r.ask("GET", path, "")
		if a.status != 200 {
			t.Fatalf("%s: %d %s", path, a.status, a.text)
		}

		for i := 0; a.at("items", i) != nil; i++ {
			versions = append(versions, a.at("items", i, "version"))
		}

		link, _, _ := strings.Cut(strings.TrimPrefix(a.headers.Get("Link"), "<"+httpapi.Prefix), ">")
		path = link
	}

	if diff := cmp.Diff([]any{1.0, 2.0, 3.0}, versions); diff != "" {
		t.Error(diff)
	}

	if a := r.ask("GET", "/events?stream=s", ""); !strings.Contains(a.text, `{"n":1.50}`) || a.at("items", 2, "version") != 3.0 {
		t.Errorf("the stream: %s", a.text)
	}

	if _, err := r.pool.Exec(t.Context(), `INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES ('writer', $1, '1970-01-01', 0)`, id); err != nil {
		t.Fatal(err)
	}

	if a := r.ask("GET", "/conversations/"+id.String(), ""); a.at("items", 0, "state") != "applied" || a.at("items", 0, "topic") != "notes" {
		t.Errorf("the conversation: %s", a.text)
	}
}

func TestAPanicIsAProblem(t *testing.T) {
	t.Parallel()

	if a := newRig(t).ask("GET", "/panic", ""); a.status != 500 || !strings.Contains(a.text, "see the service log") {
		t.Errorf("got %d %s", a.status, a.text)
	}
}

func TestTheAPIDescribesItself(t *testing.T) {
	t.Parallel()

	a := newRig(t).ask("GET", "/openapi.json", "")
	if a.status != 200 || !strings.HasPrefix(fmt.Sprint(a.body["openapi"]), "3.1") || !strings.Contains(a.text, `"/failed/{id}/requeue"`) {
		t.Errorf("got %d %.200s", a.status, a.text)
	}
}

// People read responses in terminals.
func TestResponsesHaveNothingThatATerminalObeys(t *testing.T) {
	t.Parallel()

	const evil = "x\x1b[31m\u009b31m\x7f\u202ereversed\u2028"

	r := newRig(t)
	r.add(evil, evil)

	for path, says := range map[string]string{
		"/failed":                 `x\u001b[31m\u009b31m\u007f\u202ereversed\u2028`,
		"/failed/1":               `x\u001b[31m\u009b31m\u007f\u202ereversed\u2028`,
		"/failed/groups":          `\u009b`,
		"/failed/counts?by=key":   `\u202e`,
		"/things/%C2%9B%E2%80%AE": `there is no thing \\u009b\\u202e`,
	} {
		a := r.ask("GET", path, "")
		if i := strings.IndexFunc(a.text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 || !strings.Contains(a.text, says) {
			t.Errorf("%s: got %q, expected %q", path, a.text, says)
		}
	}

	if got := r.ask("GET", "/failed/1", "").at("key"); got != evil {
		t.Errorf("the key is %q, expected %q", got, evil)
	}
}

func TestRefusedMessagesAreRetriedAndDiscarded(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	_, err := r.pool.Exec(t.Context(), `
		INSERT INTO outbox (shard, topic, key, message_id, payload, correlation_id, available_at, refused)
		SELECT 0, 'notes', 'o', id, '{}', id, 'infinity', 'Message was too large'
		FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, 3)) AS ids`)
	if err != nil {
		t.Fatal(err)
	}

	if a := r.ask("GET", "/refused?topic=notes", ""); a.at("items", 2, "why") != "Message was too large" || a.at("items", 0, "id") != 1.0 {
		t.Errorf("list: %s", a.text)
	}

	if a := r.ask("POST", "/refused/discard", `{"ids":[1]}`); a.status != 422 && a.status != 400 {
		t.Errorf("discarding without a reason: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/refused/discard", `{"ids":[1],"why":"test"}`); a.status != 200 || a.at("done", 0, "id") != 1.0 {
		t.Errorf("discard: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/refused/retry", `{"ids":[3]}`); a.status != 200 || a.at("done", 0, "id") != 3.0 {
		t.Errorf("retry: %d %s", a.status, a.text)
	}

	if a := r.ask("POST", "/refused/retry", `{"ids":[3]}`); a.status != 404 {
		t.Errorf("retrying again: %d %s", a.status, a.text)
	}
}
