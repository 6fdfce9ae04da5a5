package event_test

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/engine/event"
)

func TestUnwrap(t *testing.T) {
	t.Parallel()

	const required = `"specversion": "1.0", "id": "1", "source": "shop", "type": "orders.created"`

	attributes := event.Headers{"ce_specversion": "1.0", "ce_id": "1", "ce_source": "shop", "ce_type": "orders.created"}
	with := func(more event.Headers) event.Headers {
		maps.Copy(more, attributes)

		return more
	}

	for name, c := range map[string]struct {
		headers event.Headers
		payload string
		want    event.Headers
		data    string
	}{
		"Dapr": {
			event.Headers{},
			`{"data": {"order_id": "o1"}, "datacontenttype": "application/json", "pubsubname": "kafka", "topic": "orders.created",
			  "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ` + required + `}`,
			with(event.Headers{
				"content-type": "application/json", "ce_pubsubname": "kafka", "ce_topic": "orders.created",
				"ce_traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			}),
			`{"order_id": "o1"}`,
		},
		"Knative": {
			event.Headers{"content-type": "application/cloudevents+json; charset=UTF-8"},
			`{` + required + `, "partitionkey": "o1", "sequence": 7, "final": true, "data": {"order_id": "o1"}}`,
			with(event.Headers{"ce_partitionkey": "o1", "ce_sequence": "7", "ce_final": "true"}),
			`{"order_id": "o1"}`,
		},
		"binary data":  {event.Headers{}, `{` + required + `, "data_base64": "eyJhIjoxfQ=="}`, with(event.Headers{}), `{"a":1}`},
		"text as data": {event.Headers{}, `{` + required + `, "datacontenttype": "text/plain", "data": "hello"}`, with(event.Headers{"content-type": "text/plain"}), `hello`},
		"JSON text":    {event.Headers{}, `{` + required + `, "datacontenttype": "application/json", "data": "hello"}`, with(event.Headers{"content-type": "application/json"}), `"hello"`},
		"no data":      {event.Headers{}, `{` + required + `}`, with(event.Headers{}), ``},
		"a header of the broker's own comes first": {
			event.Headers{"ce_id": "2"}, `{` + required + `, "data": 1}`,
			event.Headers{"ce_specversion": "1.0", "ce_id": "2", "ce_source": "shop", "ce_type": "orders.created"}, `1`,
		},
		"binary mode with such data": {
			event.Headers{"ce_specversion": "1.0", "content-type": "application/json"}, `{` + required + `, "amount": 5}`,
			event.Headers{"ce_specversion": "1.0", "content-type": "application/json"}, `{` + required + `, "amount": 5}`,
		},
		"a plain payload":             {event.Headers{}, `{"order_id": "o1"}`, event.Headers{}, `{"order_id": "o1"}`},
		"a payload with a like field": {event.Headers{}, `{"specversion": "1.0", "id": "1"}`, event.Headers{}, `{"specversion": "1.0", "id": "1"}`},
		"a field inside":              {event.Headers{}, `{"properties": {` + required + `}}`, event.Headers{}, `{"properties": {` + required + `}}`},
		"not JSON":                    {event.Headers{}, `"specversion`, event.Headers{}, `"specversion`},
		"data that is not Base64": {
			event.Headers{}, `{` + required + `, "data_base64": "%"}`, event.Headers{}, `{` + required + `, "data_base64": "%"}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			data := event.Unwrap(c.headers, []byte(c.payload))
			if diff := cmp.Diff(c.data, string(data)) + cmp.Diff(c.want, c.headers); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzUnwrap(f *testing.F) {
	f.Add([]byte(`{"specversion": "1.0", "id": "1", "source": "shop", "type": "t", "data": {"a": 1}}`))
	f.Add([]byte(`{"specversion": "1.0", "id": "1", "source": "shop", "type": "t", "data_base64": "AA==", "n": null}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		headers := event.Headers{}
		data := event.Unwrap(headers, payload)

		if len(headers) == 0 && string(data) != string(payload) {
			t.Errorf("%q became %q, without attributes", payload, data)
		}

		if len(headers) > 0 && (headers["ce_id"] == "" || headers["ce_source"] == "") {
			t.Errorf("%q got the headers %q", payload, headers)
		}
	})
}
