package app_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// FuzzPayloads gives any payload to each consumer. One that is accepted has a key that can
// be stored, and is accepted again as its own redelivery.
func FuzzPayloads(f *testing.F) {
	s := apptest.New(f, pgtest.URL(f))
	routes := s.Router.Routes()

	for i, text := range []string{
		`{"order":{"id":"a","product_id":"p","quantity":1,"total_amount":"1.10","currency":"EUR"}}`,
		`{"order_id":"a","amount":1e2,"attempt":2}`, `{"order_id":"a","reason":"no"}`,
		`{"order_id":"a","transaction_id":"t","refund_id":"r","status":"captured","amount":"1","currency":"USD"}`,
		`{"product_id":"p","quantity":20e-1}`, `{"user":{"id":"a","name":"Ann","email":"a@example.com","x":{"y":[null]}}}`,
		`{"user_id":"a","updates":{"email":"b@example.com"}}`, `{"userId":"a","userName":"Ann","userEmail":"a@example.com","userAction":"createUser"}`,
		`{"user_id":"a","content":"hello","channel":"email"}`, `{"event":"e","timestamp":1e9,"properties":{"a":1}}`,
	} {
		for n := range routes {
			f.Add(n, []byte(text))
		}

		f.Add(i, []byte(strings.Repeat(`{"order":`, 70)))
	}

	f.Fuzz(func(t *testing.T, n int, payload []byte) {
		route := routes[(n%len(routes)+len(routes))%len(routes)]

		key, err := route.Check(payload)
		if err != nil {
			if err.Error() == "" || event.Shorten(err.Error(), 100_000) != err.Error() {
				t.Errorf("%s: the error has %d bytes", route.Topic, len(err.Error()))
			}

			return
		}

		if event.Text(key) != key {
			t.Errorf("%s: accepted the key %q, which cannot be stored", route.Topic, key)
		}

		if again, err := route.Check(payload); again != key || err != nil {
			t.Errorf("%s: got the key %q, then %q, %v", route.Topic, key, again, err)
		}
	})
}

// FuzzRequests sends any request to the operator API: it is answered, and never by 500.
func FuzzRequests(f *testing.F) {
	s := apptest.Start(f)
	s.ExpectFailures()

	for _, seed := range []struct{ method, path, query, body string }{
		{"GET", "failed", "state=stopped&limit=2&since=2026-01-31", ""}, {"POST", "failed/requeue", "", `{"ids":[1],"why":"x","overtaken":true}`},
		{"POST", "failed/edit", "", `{"ids":[1],"patch":{"a":null},"why":"x"}`}, {"GET", "events", "stream=order-1&cursor=MQ", ""},
		{"GET", "activity", "who=a&limit=100", ""}, {"PUT", "consumers/fulfilment.place/pause", "", `{"why":"x","for":"1h"}`},
		{"GET", "conversations/00000000-0000-0000-0000-000000000000", "", ""}, {"POST", "erasures", "", `{"user_id":"a","why":"x","dry_run":true}`},
		{"GET", "waiting", "key=%00", ""}, {"POST", "refused/retry", "", `{"ids":[99999999999999999999]}`},
	} {
		f.Add(seed.method, seed.path, seed.query, seed.body)
	}

	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		target := url.URL{Scheme: "http", Host: s.HTTPAddr(), Path: "/api/v1/" + path, RawQuery: query}

		request, err := http.NewRequestWithContext(t.Context(), method, target.String(), strings.NewReader(body))
		if err != nil {
			return // no client can send it
		}

		request.Header.Set("Content-Type", "application/json")

		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return // no client can send it, or it was redirected
		}
		defer response.Body.Close()

		answer, _ := io.ReadAll(response.Body)
		if response.StatusCode >= http.StatusInternalServerError || strings.Contains(string(answer), "SQLSTATE") {
			t.Errorf("%s %s %q: %d %s", method, &target, body, response.StatusCode, answer)
		}
	})
}
