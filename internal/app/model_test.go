package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// books is a slow and simple model of the shop: what its tables must say after a sequence
// of messages, each of which is applied before the next. It shares no code with the shop.
type books struct {
	Stock map[string]stocked
	// Orders has the status of each order, Events the types of its events.
	Orders   map[string]string
	Events   map[string]string
	Payments map[string]string
	Users    map[string]profile
	// Notified and Misses count notifications and updates of nobody, by user.
	Notified, Misses map[string]int
	Tracked          map[string]int
	// Stopped has the reasons of the messages that are stopped, by id and payload.
	Stopped map[string]string
	// Applied counts the messages in the inbox that were sent.
	Applied map[uuid.UUID]int

	bodies    map[string]string
	appliedAs map[uuid.UUID]string
	ids       map[uuid.UUID]bool
}

type stocked struct{ Supplied, Available, Sold int }

type profile struct {
	Name, Email, Properties string
	Version                 int
}

func newBooks() *books {
	return &books{
		Stock: map[string]stocked{}, Orders: map[string]string{}, Events: map[string]string{}, Payments: map[string]string{},
		Users: map[string]profile{}, Notified: map[string]int{}, Misses: map[string]int{}, Tracked: map[string]int{},
		Stopped: map[string]string{}, Applied: map[uuid.UUID]int{}, bodies: map[string]string{}, appliedAs: map[uuid.UUID]string{}, ids: map[uuid.UUID]bool{},
	}
}

// sentence is a message and what it means. An empty effect has a reason for which the
// message is stopped.
type sentence struct {
	event.Message

	reason string
	effect func(b *books) (reason string)
}

// take enters a message.
func (b *books) take(s sentence) {
	body := s.ID.String() + " " + string(s.Payload)
	b.ids[s.ID] = true

	switch as := b.appliedAs[s.ID]; {
	case s.reason != "":
		b.Stopped[body] = s.reason
	case as == body: // a repeat changes nothing
	case as != "":
		b.Stopped[body] = string(event.ReasonConflict)
	case b.Stopped[body] != "": // only an operator decides
	default:
		if reason := s.effect(b); reason != "" {
			b.Stopped[body] = reason
		} else {
			b.appliedAs[s.ID] = body
			b.Applied[s.ID]++
		}
	}
}

// place is what a valid order means.
func (b *books) place(id, product string, quantity int, total string) string {
	body := fmt.Sprint(product, quantity, total)

	if was, exists := b.bodies[id]; exists {
		if was != body {
			return string(event.ReasonConflict)
		}

		return ""
	}

	b.bodies[id] = body
	s := b.Stock[product]

	switch {
	case s.Available < quantity:
		b.Orders[id], b.Events[id] = "inventory_unavailable", "OrderCreated InventoryUnavailable"
	case total == "0":
		b.Orders[id], b.Payments[id] = "payment_failed", "declined"
		b.Events[id] = "OrderCreated InventoryReserved PaymentFailed"
	default:
		b.Orders[id], b.Payments[id] = "completed", "captured"
		b.Events[id] = "OrderCreated InventoryReserved OrderPaid OrderCompleted"
		s.Available -= quantity
		s.Sold += quantity
		b.Stock[product] = s
	}

	return ""
}

// create is what a new user means.
func (b *books) create(id string, p profile) string {
	if was, exists := b.Users[id]; exists {
		if was.Name != p.Name || was.Email != p.Email || was.Properties != p.Properties {
			// Only the same profile is the same user; an update may have changed it since.
			return string(event.ReasonConflict)
		}

		return ""
	}

	p.Version = 1
	b.Users[id] = p
	b.Notified[id]++

	return ""
}

// update is what a change of a user's name, address or city means.
func (b *books) update(id, name, email, city string) string {
	p, exists := b.Users[id]
	if !exists {
		b.Misses[id]++

		return ""
	}

	before := p

	for _, c := range []struct {
		value string
		field *string
	}{{email, &p.Email}, {name, &p.Name}, {city, &p.Properties}} {
		if c.value != "" && *c.field != c.value {
			*c.field = c.value
			p.Version++
		}
	}

	if p != before {
		b.Users[id] = p
		b.Notified[id]++
	}

	return ""
}

// teller draws messages.
type teller struct {
	t      *rapid.T
	prefix string
	told   []sentence
}

func (w *teller) name(kind string, n int) string {
	return fmt.Sprintf("%s%s%d", w.prefix, kind, rapid.IntRange(0, n-1).Draw(w.t, kind))
}

// next draws a message: a new one, one that was sent before, or one with the id of another.
func (w *teller) next() sentence {
	if len(w.told) > 0 {
		switch rapid.IntRange(0, 9).Draw(w.t, "again") {
		case 0:
			return rapid.SampledFrom(w.told).Draw(w.t, "which")
		case 1:
			s, other := w.fresh(), rapid.SampledFrom(w.told).Draw(w.t, "id of")
			if other.Topic == s.Topic { // another consumer has an inbox of its own
				s.ID = other.ID
			}

			return s
		}
	}

	return w.fresh()
}

func (w *teller) fresh() sentence {
	s := rapid.SampledFrom([]func() sentence{w.order, w.order, w.cancel, w.restock, w.user, w.userUpdate, w.legacy, w.track}).Draw(w.t, "kind")()
	s.ID = event.NewID()

	if s.reason == "" {
		w.spoil(&s)
	}

	return s
}

// spoil may damage a message, which is then stopped.
func (w *teller) spoil(s *sentence) {
	text := string(s.Payload)

	for _, d := range []struct {
		name, was, is string
		reason        event.Reason
	}{
		{"cut", "}", "", event.ReasonMalformed},
		{"a trailing brace", text, text + "}", event.ReasonMalformed},
		{"a quoted number", `"quantity":`, `"quantity":"5","q":`, event.ReasonMalformed},
		{"half a unit", `"quantity":`, `"quantity":0.5,"q":`, event.ReasonMalformed},
		{"nothing", `"quantity":`, `"quantity":0,"q":`, event.ReasonInvalid},
		{"a negative amount", `"total_amount":`, `"total_amount":-1,"a":`, event.ReasonInvalid},
		{"too many decimal places", `"total_amount":`, `"total_amount":1.001,"a":`, event.ReasonInvalid},
		{"a historic currency", `"currency":"USD"`, `"currency":"DEM"`, event.ReasonInvalid},
		{"no currency", `"currency":"USD"`, `"currency":null`, event.ReasonMalformed},
		{"two ids", `"id":`, `"id":"twice","id":`, event.ReasonMalformed},
		{"an id with a line break", `"id":"`, `"id":"\n`, event.ReasonInvalid},
		{"no address", `"email":"`, `"email":"@`, event.ReasonInvalid},
		{"an unpaired surrogate", `"name":"`, `"name":"\ud800`, event.ReasonMalformed},
		{"a week for a time", `"timestamp":"`, `"timestamp":"2026-W05","x":"`, event.ReasonMalformed},
		{"no time", `"timestamp":`, `"stamp":`, event.ReasonInvalid},
	} {
		if !strings.Contains(text, d.was) || rapid.IntRange(0, 39).Draw(w.t, d.name) > 0 {
			continue
		}

		s.Payload, s.reason = []byte(strings.Replace(text, d.was, d.is, 1)), string(d.reason)

		return
	}
}

func (w *teller) message(topic, key, format string, args ...any) event.Message {
	return event.Message{Topic: topic, Key: key, Payload: fmt.Appendf(nil, format, args...)}
}

func (w *teller) order() sentence {
	id, product, quantity := w.name("order", 8), w.name("product", 3), rapid.IntRange(1, 4).Draw(w.t, "quantity")
	total := rapid.SampledFrom([]string{"0", "10", "99.99"}).Draw(w.t, "total")
	form := rapid.SampledFrom([]string{
		`{"order":{"id":%q,"product_id":%q,"quantity":%d,"total_amount":%s}}`,
		`{"order":{"id":%q,"items":[{"product_id":%q,"quantity":%d}],"total_amount":"%s","currency":"USD"}}`,
		`{"unknown":[{}],"order":{"id":%q,"product_id":%q,"quantity":%d.0,"total_amount":%s}}`,
	}).Draw(w.t, "form")

	return sentence{
		Message: w.message("orders.created", id, form, id, product, quantity, total),
		effect:  func(b *books) string { return b.place(id, product, quantity, total) },
	}
}

func (w *teller) cancel() sentence {
	id := w.name("order", 8)

	return sentence{
		Message: w.message("orders.cancel.requested", id, `{"order_id":%q,"reason":"no"}`, id),
		effect: func(b *books) string {
			if b.Orders[id] == "" {
				return string(event.ReasonFailed)
			}

			return "" // all orders have ended, so it is refused
		},
	}
}

func (w *teller) restock() sentence {
	product, quantity := w.name("product", 3), rapid.IntRange(1, 5).Draw(w.t, "quantity")

	return sentence{
		Message: w.message("inventory.restocked", product, `{"product_id":%q,"quantity":%d}`, product, quantity),
		effect: func(b *books) string {
			s := b.Stock[product]
			s.Supplied += quantity
			s.Available += quantity
			b.Stock[product] = s

			return ""
		},
	}
}

func (w *teller) person() (id string, p profile) {
	id = w.name("user", 4)
	p.Name = rapid.SampledFrom([]string{"Ann", "Bob", "名前", "O'Neil \"x\""}).Draw(w.t, "name")
	p.Email = rapid.SampledFrom([]string{"ann@example.com", "bob@example.org"}).Draw(w.t, "email")
	p.Properties = rapid.SampledFrom([]string{"Rome", "Oslo"}).Draw(w.t, "city")

	return id, p
}

func quoted(text string) string {
	data, _ := json.Marshal(text)

	return string(data)
}

func (w *teller) user() sentence {
	id, p := w.person()

	return sentence{
		Message: w.message("user.created", id, `{"user":{"id":%q,"name":%s,"email":%q,"city":%q}}`, id, quoted(p.Name), p.Email, p.Properties),
		effect:  func(b *books) string { return b.create(id, p) },
	}
}

func (w *teller) userUpdate() sentence {
	id, p := w.person()
	fields := []string{`"name":` + quoted(p.Name), `"email":` + quoted(p.Email), `"city":` + quoted(p.Properties)}
	chosen := rapid.IntRange(1, 7).Draw(w.t, "fields")

	var given []string

	for i, value := range []*string{&p.Name, &p.Email, &p.Properties} {
		if chosen&(1<<i) != 0 {
			given = append(given, fields[i])
		} else {
			*value = ""
		}
	}

	m := w.message("user.updated", id, `{"user_id":%q,"updates":{%s}}`, id, strings.Join(given, ","))

	return sentence{Message: m, effect: func(b *books) string { return b.update(id, p.Name, p.Email, p.Properties) }}
}

func (w *teller) legacy() sentence {
	id, p := w.person()
	create := rapid.Bool().Draw(w.t, "create")
	action := "updateUser"

	if create {
		action = "createUser"
	}

	m := w.message("user.events", id, `{"userId":%q,"userName":%s,"userEmail":%q,"userAction":%q,"city":%q}`, id, quoted(p.Name), p.Email, action, p.Properties)

	return sentence{Message: m, effect: func(b *books) string {
		if create {
			return b.create(id, p)
		}

		return b.update(id, p.Name, p.Email, p.Properties)
	}}
}

func (w *teller) track() sentence {
	name := w.name("event", 3)
	m := w.message("analytics.track", "", `{"event":%q,"timestamp":"2026-03-01T10:00:00Z","properties":{"a":[1,null]}}`, name)

	return sentence{Message: m, effect: func(b *books) string {
		b.Tracked[name]++

		return ""
	}}
}

// read reads the books from the tables. All names begin with prefix.
func read(s *apptest.Service, prefix string, ids []uuid.UUID) *books {
	like, b := prefix+"%", newBooks()

	b.Stock = asked[string, stocked](s, `SELECT product_id, ROW(supplied::int, available::int, sold::int) FROM stock WHERE product_id LIKE $1 AND reserved = 0`, like)
	b.Orders = asked[string, string](s, `SELECT id, status FROM orders WHERE id LIKE $1`, like)
	b.Events = asked[string, string](s, `SELECT substr(stream, 7), string_agg(type, ' ' ORDER BY version) FROM events WHERE stream LIKE 'order-' || $1 GROUP BY 1`, like)
	b.Payments = asked[string, string](s, `SELECT order_id, status FROM payments WHERE order_id LIKE $1`, like)
	b.Users = asked[string, profile](s, `SELECT id, ROW(name, email, coalesce(properties ->> 'city', ''), version) FROM users WHERE id LIKE $1`, like)
	b.Notified = asked[string, int](s, `SELECT user_id, count(*)::int FROM notifications WHERE user_id LIKE $1 GROUP BY 1`, like)
	b.Misses = asked[string, int](s, `SELECT user_id, count(*)::int FROM user_misses WHERE user_id LIKE $1 GROUP BY 1`, like)
	b.Tracked = asked[string, int](s, `SELECT event, count::int FROM analytics_daily WHERE event LIKE $1`, like)
	b.Stopped = asked[string, string](s, `SELECT message_id || ' ' || convert_from(payload, 'UTF8'), reason FROM failed_messages WHERE message_id = ANY($1) AND state = 'stopped'`, ids)
	b.Applied = asked[uuid.UUID, int](s, `SELECT message_id, count(*)::int FROM inbox WHERE message_id = ANY($1) GROUP BY 1`, ids)

	return b
}

// asked returns the two columns of a query.
func asked[K comparable, V any](s *apptest.Service, sql string, args ...any) map[K]V {
	found, err := postgres.Map[K, V](context.Background(), s.Pool, sql, args...)
	if err != nil {
		panic(err)
	}

	return found
}

// tell sends a drawn sequence of messages and compares the tables with the model.
func tell(tb testing.TB, t *rapid.T, s *apptest.Service, prefix string) {
	tb.Helper()

	w, want := &teller{t: t, prefix: prefix}, newBooks()

	for n := range 3 {
		id := fmt.Sprintf("%sproduct%d", prefix, n)
		want.Stock[id] = stocked{Supplied: 6, Available: 6}

		if err := s.Inventory.Seed(t.Context(), map[string]int64{id: 6}); err != nil {
			t.Fatal(err)
		}
	}

	for range rapid.IntRange(1, 25).Draw(t, "messages") {
		next := w.next()
		w.told = append(w.told, next)
		want.take(next)

		if err := s.Operator.Publish(t.Context(), []event.Message{next.Message}); err != nil {
			t.Fatalf("%s: %v", next.Payload, err)
		}

		s.WaitUntilIdle()
	}

	ids := slices.Collect(maps.Keys(want.ids))
	versions := 0

	for _, p := range want.Users {
		versions += p.Version
	}

	pgtest.Eventually(tb, "users are projected", func() bool {
		return apptest.Value[int](s, `SELECT coalesce(sum(version), 0)::int FROM users WHERE id LIKE $1`, prefix+"%") >= versions
	})

	got := read(s, prefix, ids)

	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(books{})); diff != "" {
		var told []string
		for _, m := range w.told {
			told = append(told, fmt.Sprintf("%s %s %s", m.Topic, m.ID, m.Payload))
		}

		t.Fatalf("the tables differ from the model (-model +tables):\n%s\nafter\n%s", diff, strings.Join(told, "\n"))
	}
}

// startToTell starts a service that stops a message at its first failure.
func startToTell(tb testing.TB) *apptest.Service {
	tb.Helper()

	s := apptest.Start(tb, func(cfg *config.Config) {
		cfg.Consumer.Retries, cfg.Consumer.ParkAttempts, cfg.Consumer.AwaitTimeout = 0, 0, 0
	})
	s.ExpectFailures()

	return s
}

// TestTheTablesAreWhatAModelOfTheShopSays sends sequences of valid, damaged, repeated and
// contradictory messages through the whole service.
func TestTheTablesAreWhatAModelOfTheShopSays(t *testing.T) {
	t.Parallel()

	tb, s, n := t, startToTell(t), 0

	rapid.Check(t, func(t *rapid.T) {
		n++
		tell(tb, t, s, fmt.Sprintf("m%d-", n))
	})
}

// FuzzShop is TestTheTablesAreWhatAModelOfTheShopSays with inputs that the fuzzer finds.
func FuzzShop(f *testing.F) {
	var n atomic.Int64

	s := startToTell(silent{f})

	f.Fuzz(func(t *testing.T, input []byte) {
		rapid.MakeFuzz(func(rt *rapid.T) { tell(t, rt, s, fmt.Sprintf("f%d-", n.Add(1))) })(t, input)
	})
}

// silent is a fuzz test that helpers may be given: they call Helper within its target,
// where testing.F panics.
type silent struct{ testing.TB }

func (silent) Helper() {}
