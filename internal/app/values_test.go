package app_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// spelling is a JSON value, and the text of the error if it is refused.
type spelling struct{ value, says string }

// kinds lists some spellings of each kind of value, enough to tell whether a field is of
// that kind. Packages event and money test all spellings.
var kinds = map[string][]spelling{
	"ID": {
		{`"x-1 ü注"`, ""},
		{`"a\u0000"`, "expected printable characters"},
		{`"a\u200db"`, "expected printable characters"},
		{`"a\u3000b"`, "expected printable characters"},
		{`"a\u009bb"`, "expected printable characters"},
		{`"a\u202eb"`, "expected printable characters"},
		{`"a\nb"`, "expected printable characters"},
		{`"` + strings.Repeat("x", 201) + `"`, "has 201 bytes, expected at most 200"},
		{`"\ud800"`, "not valid JSON"},
		{`7`, "is "},
	},
	"name": {
		{`"山田\u3000太郎"`, ""},
		{`"Jean\u00a0Luc"`, ""},
		{`"نام\u200cه"`, ""},
		{`"👨\u200d👩\u200d👧"`, ""},
		{`"\ud83f\udffd"`, ""}, // unassigned
		{`"\u2068Alice\u2069"`, ""},
		{`"a\u0000"`, "contains the character U+0000"},
		{`"a\nb"`, "contains the character U+000A, expected one line"},
		{`"a\u009bb"`, "contains the character U+009B"},
		{`"a\u2028b"`, "contains the character U+2028"},
		{`"\u200d"`, "is missing"},
		{`null`, "is missing"},
	},
	"text": {
		{`"one\r\ntwo\tthree"`, ""},
		{`"a\u00a0b\u3000c\u200dd\u2028e"`, ""},
		{`"👨\u200d👩\u200d👧\ud83f\udffd"`, ""},
		{`"\u001b[31m\u009b\u007f\u202e"`, ""},
		{`"a\u0000"`, "contains the character U+0000, which cannot be stored"},
		{`"\udc00"`, "not valid JSON"},
	},
	"whole number": {
		{`2`, ""}, {`2.0`, ""}, {`2e0`, ""}, {`20e-1`, ""},
		{`2.5`, "is 2.5, expected a whole number"},
		{`1e1000000000`, "is 1e1000000000, out of range, expected a whole number"},
		{`"2"`, "is a JSON string, expected a whole number"},
		{`-1`, "is -1, expected"},
	},
	"amount": {
		{`1.10`, ""}, {`"1.10"`, ""}, {`1e0`, ""}, {`-0`, ""}, {`".5"`, ""},
		{`null`, "is missing, expected a decimal number"},
		{`-1`, "is -1, expected 0 or more"},
		{`1.001`, "is 1.001, expected at most 2 decimal places"},
		{`1e1000000000`, "expected a decimal number"},
		{`"1,10"`, `is "1,10", expected a decimal number`},
		{`true`, "expected a decimal number"},
	},
	"currency": {
		{`"USD"`, ""}, {`"SLE"`, ""}, {`"XCG"`, ""},
		{`null`, "is null, expected an ISO 4217 code such as USD"},
		{`""`, `is "", expected an ISO 4217 code`},
		{`"usd"`, `is "usd", expected an ISO 4217 code`},
		{`"XXX"`, `is "XXX", expected an ISO 4217 code`},
		{`"DEM"`, `is "DEM", expected an ISO 4217 code`},
		{`"BGN"`, `is "BGN", expected an ISO 4217 code`},
		{`840`, "is not a JSON string, expected an ISO 4217 code"},
	},
	"currency of moved money": {
		{`"USD"`, ""}, {`"BGN"`, ""},
		{`null`, `is "", expected a code of three capital letters`},
		{`"usd"`, `is "usd", expected a code of three capital letters`},
	},
	"time": {
		{`"2026-01-31T12:00:00Z"`, ""}, {`"2026-01-31t12:00z"`, ""}, {`"2026-01-31 12:00:00,5+0000"`, ""}, {`"2026-01-31T12:00:00+00"`, ""},
		{`1769860800.5`, ""}, {`1769860800500`, ""},
		{`null`, "is not a time"},
		{`"yesterday"`, `is "yesterday", expected a time such as`},
		{`"0000-01-01T00:00:00Z"`, "is out of range"},
	},
}

// Every field of every payload is of one of these kinds.
func TestPayloadsTakeTheSameValues(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.URL(t))

	for _, c := range []struct{ topic, field, kind, payload string }{ // ? in the payload stands for the field
		{"orders.created", "order.id", "ID", `{"order":{"id":?,"product_id":"p","quantity":1,"total_amount":1}}`},
		{"orders.created", "order.product_id", "ID", `{"order":{"id":"o","product_id":?,"quantity":1,"total_amount":1}}`},
		{"orders.created", "order.quantity", "whole number", `{"order":{"id":"o","product_id":"p","quantity":?,"total_amount":1}}`},
		{"orders.created", "order.items[0].product_id", "ID", `{"order":{"id":"o","items":[{"product_id":?,"quantity":1}],"total_amount":1}}`},
		{"orders.created", "order.items[0].quantity", "whole number", `{"order":{"id":"o","items":[{"product_id":"p","quantity":?}],"total_amount":1}}`},
		{"orders.created", "order.total_amount", "amount", `{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":?}}`},
		{"orders.created", "order.currency", "currency", `{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1,"currency":?}}`},
		{"payments.requested", "order_id", "ID", `{"order_id":?,"amount":1}`},
		{"payments.requested", "amount", "amount", `{"order_id":"o","amount":?}`},
		{"payments.requested", "currency", "currency", `{"order_id":"o","amount":1,"currency":?}`},
		{"payments.requested", "attempt", "whole number", `{"order_id":"o","amount":1,"attempt":?}`},
		{"orders.completed", "order_id", "ID", `{"order_id":?}`},
		{"orders.cancel.requested", "order_id", "ID", `{"order_id":?}`},
		{"orders.cancel.requested", "reason", "text", `{"order_id":"o","reason":?}`},
		{"orders.expiry.due", "order_id", "ID", `{"order_id":?}`},
		{"payments.refund.requested", "order_id", "ID", `{"order_id":?,"transaction_id":"t","amount":1,"currency":"USD"}`},
		{"payments.refund.requested", "transaction_id", "ID", `{"order_id":"o","transaction_id":?,"amount":1,"currency":"USD"}`},
		{"payments.refund.requested", "amount", "amount", `{"order_id":"o","transaction_id":"t","amount":?,"currency":"USD"}`},
		{"payments.refund.requested", "currency", "currency of moved money", `{"order_id":"o","transaction_id":"t","amount":1,"currency":?}`},
		{"payments.refund.requested", "failed_refund_id", "ID", `{"order_id":"o","transaction_id":"t","failed_refund_id":?,"amount":1,"currency":"USD"}`},
		{"payments.reported", "order_id", "ID", `{"order_id":?,"outcome":"captured","transaction_id":"t","amount":1,"currency":"USD"}`},
		{"payments.reported", "transaction_id", "ID", `{"order_id":"o","outcome":"captured","transaction_id":?,"amount":1,"currency":"USD"}`},
		{"payments.reported", "refund_id", "ID", `{"order_id":"o","outcome":"refunded","transaction_id":"t","refund_id":?,"amount":1,"currency":"USD"}`},
		{"payments.reported", "reason", "text", `{"order_id":"o","outcome":"declined","reason":?,"amount":1,"currency":"USD"}`},
		{"payments.reported", "amount", "amount", `{"order_id":"o","outcome":"captured","transaction_id":"t","amount":?,"currency":"USD"}`},
		{"payments.reported", "currency", "currency of moved money", `{"order_id":"o","outcome":"captured","transaction_id":"t","amount":1,"currency":?}`},
		{"inventory.restocked", "product_id", "ID", `{"product_id":?,"quantity":1}`},
		{"inventory.restocked", "quantity", "whole number", `{"product_id":"p","quantity":?}`},
		{"user.created", "user.id", "ID", `{"user":{"id":?,"name":"n","email":"a@b.example"}}`},
		{"user.created", "user.name", "name", `{"user":{"id":"u","name":?,"email":"a@b.example"}}`},
		{"user.updated", "user_id", "ID", `{"user_id":?,"updates":{"name":"n"}}`},
		{"user.updated", "updates.name", "name", `{"user_id":"u","updates":{"name":?,"email":"a@b.example"}}`},
		{"user.events", "user_id", "ID", `{"user_id":?,"action":"update","name":"n"}`},
		{"user.events", "updates.name", "name", `{"userId":"u","action":"update","userName":?,"email":"a@b.example"}`},
		{"notifications", "user_id", "ID", `{"user_id":?,"content":"c"}`},
		{"notifications", "content", "text", `{"user_id":"u","content":?}`},
		{"notifications.email", "user_id", "ID", `{"user_id":?,"content":"c"}`},
		{"notifications.email", "content", "text", `{"user_id":"u","content":?}`},
		{"notifications.webhook", "user_id", "ID", `{"user_id":?,"content":"c","at":"2026-01-31T12:00:00Z"}`},
		{"notifications.webhook", "at", "time", `{"user_id":"u","content":"c","at":?}`},
		{"notifications.log", "content", "text", `{"user_id":"u","content":?}`},
		{"analytics.track", "event", "text", `{"event":?,"timestamp":0}`},
		{"analytics.track", "timestamp", "time", `{"event":"e","timestamp":?}`},
		{"analytics.track", "user_id", "ID", `{"event":"e","timestamp":0,"user_id":?}`},
	} {
		for _, sp := range kinds[c.kind] {
			says := sp.says
			if sp.value == "null" && c.field == "updates.name" {
				says = "" // an update may omit the name
			}

			_, err := s.Operator.CheckPayload(c.topic, []byte(strings.Replace(c.payload, "?", sp.value, 1)))

			switch {
			case says == "" && err != nil:
				t.Errorf("%s: %s %.40s: %v", c.topic, c.field, sp.value, err)
			case says != "" && (err == nil || !strings.HasPrefix(err.Error(), c.field+": ") || !strings.Contains(err.Error(), says)):
				t.Errorf("%s: %s %.40s: got %v, expected %q", c.topic, c.field, sp.value, err, says)
			}
		}
	}
}

// Text that people write is applied and stored unchanged.
func TestWhatPeopleWriteIsApplied(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()

	texts := []string{"one\r\ntwo\tthree", "a\u00a0b", "👨\u200d👩\u200d👧", "山田\u3000太郎", "نام\u200cه", "\U0001FFFD", "\u202eabc\u009b31m", "one\u2028two"}
	quoted := func(s string) string { data, _ := json.Marshal(s); return string(data) }

	for i, text := range texts {
		id := "order_" + strconv.Itoa(i)
		reserve(t, s, id)
		s.Publish("orders.cancel.requested", fmt.Sprintf(`{"order_id":%q,"reason":%s}`, id, quoted(text)))
		s.Publish("analytics.track", fmt.Sprintf(`{"event":%s,"timestamp":"2026-01-31 12:00:00+00"}`, quoted(text)))
	}

	for i, text := range texts {
		s.WaitForOrder("order_"+strconv.Itoa(i), "cancelled")

		if got := apptest.Value[string](s, `SELECT data->>'reason' FROM events WHERE stream = $1 AND type = 'OrderCancelled'`, "order-order_"+strconv.Itoa(i)); got != text {
			t.Errorf("the reason is %q, expected %q", got, text)
		}
	}

	names := []string{"山田\u3000太郎", "Jean\u00a0Luc", "نام\u200cه", "👨\u200d👩\u200d👧", "\U0001FFFD", "\u2068Alice\u2069"}
	for i, name := range names {
		s.Publish("user.created", fmt.Sprintf(`{"user":{"id":"user_%d","name":%s,"email":"a@b.example"}}`, i, quoted(name)))
	}

	s.Messages("notifications", len(names))
	s.WaitUntilIdle()

	for i, name := range names {
		if user, err := s.Users.Show(t.Context(), "user_"+strconv.Itoa(i)); err != nil || user.Name != name {
			t.Errorf("the name is %q, %v, expected %q", user.Name, err, name)
		}
	}

	s.Publish("orders.created", "\ufeff{\"order\":{\"id\":\"spelled\",\"product_id\":\"product_2\",\"quantity\":2.0,\"total_amount\":\"1e1\",\"currency\":\"IQD\"}}")
	s.WaitForOrder("spelled", "completed")
	s.WaitUntilIdle()

	if got := apptest.Value[string](s, `SELECT total_amount::float8 || ' ' || currency || ' ' || (lines->0->>'quantity') FROM orders WHERE id = 'spelled'`); got != "10 IQD 2" {
		t.Errorf("the order is %s", got)
	}

	if n := apptest.Value[int64](s, `SELECT count(*) FROM analytics_events WHERE event = ANY($1) AND occurred_at = '2026-01-31 12:00:00+00'`, texts); n != int64(len(texts)) {
		t.Errorf("%d of %d events are stored", n, len(texts))
	}
}

// Keys, headers and payloads from other producers may contain any bytes.
func TestForeignMessagesNeedNotBeText(t *testing.T) {
	t.Parallel()

	address := brokertest.Address(t, brokertest.Kafka)

	var cfg broker.Config

	s := apptest.Start(t, func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = strings.Split(address, ",")
		c.Broker.Kafka.Group = brokertest.Topic()
		c.Broker.Kafka.Prefix = c.Broker.Kafka.Group + "."
		c.Broker.Kafka.Partitions = 1
		cfg = c.Broker
	})
	s.ExpectFailures()
	s.Seed()

	const odd = "a\x00b\xff"

	headers := map[string]any{odd: odd, "correlation_id": odd, "ce_id": odd, "ce_source": odd, "traceparent": odd}
	brokertest.ProduceKafka(t, cfg, cfg.Kafka.Prefix+"orders.created",
		brokertest.Foreign{Key: odd, Headers: headers, Payload: []byte(`{"order":{"id":"good","product_id":"product_1","quantity":1,"total_amount":1}}`)},
		brokertest.Foreign{Key: odd, Payload: []byte(odd)},
		brokertest.Foreign{Key: "\x67\xf6", Payload: []byte(`{}`)},
		brokertest.Foreign{Key: "k", Payload: []byte(`{"order":{"id":"o\u0000","product_id":"product_1","quantity":1,"total_amount":1}}`)},
		brokertest.Foreign{Payload: []byte(`{"order":{"id":"last","product_id":"product_1","quantity":1,"total_amount":1}}`)})

	s.WaitForOrder("good", "completed")
	s.WaitForOrder("last", "completed")

	pgtest.Eventually(t, "three messages are stopped", func() bool {
		return apptest.Value[int64](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped'`) == 3
	})

	entries, err := s.Failed.List(t.Context(), failed.Filter{}, 10)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v: %+v", err, entries)
	}

	stopped := map[string]failed.Entry{} // messages with different keys are stopped in any order
	for _, e := range entries {
		stopped[e.Key] = e
	}

	for _, want := range []struct{ key, payload, says string }{
		{`"o\x00"`, `{"order":{"id":"o\u0000","product_id":"product_1","quantity":1,"total_amount":1}}`, `order.id: is "o\x00", expected printable characters`},
		{`"g\xf6"`, `{}`, "order.id: is missing"},
		{`"a\x00b\xff"`, odd, "payload: not valid JSON"},
	} {
		if e, ok := stopped[want.key]; !ok || string(e.Payload) != want.payload || !strings.Contains(e.Error, want.says) {
			t.Errorf("got key %s, payload %q, error %s, expected %+v", e.Key, e.Payload, e.Error, want)
		}
	}
}
