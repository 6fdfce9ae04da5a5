// Package workload makes the messages of a proof from a seed: of all topics that others
// may write to, with duplicates, conflicts and messages that cannot be applied.
package workload

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/cmd/proof/record"
)

// Secret is in all personal data and free text of the load. It must not appear in a log.
const Secret = "proofxsecretx"

// Size describes a workload.
type Size struct {
	// Rate is the number of messages a second.
	Rate     int
	Duration time.Duration
	// Products is the number of products, each with Stock units at first.
	Products int
	Stock    int64
	// Aborted adds messages of transactions that are aborted, which only Kafka has.
	Aborted bool
}

// New returns a record with the messages of a seed, in the order in which they are to be
// sent. The order of messages with one key on one topic is their order of sending.
func New(seed uint64, s Size) *record.Record {
	g := &generator{
		size: s, random: rand.New(rand.NewPCG(seed, 1)), now: time.Now(),
		record: &record.Record{Seed: seed, Stock: map[string]int64{}, Secrets: []string{Secret}, Edited: map[uuid.UUID][]byte{}},
	}

	for i := range s.Products {
		g.record.Stock[product(i)] = s.Stock
	}

	total := int(s.Duration.Seconds() * float64(s.Rate))
	for len(g.record.Messages) < total {
		g.at = time.Duration(float64(len(g.record.Messages)) / float64(s.Rate) * float64(time.Second))
		g.next()
	}

	slices.SortStableFunc(g.record.Messages, func(a, b *record.Message) int { return cmp.Compare(a.At, b.At) })

	for i, m := range g.record.Messages {
		m.Number = i
	}

	return g.record
}

func product(i int) string { return fmt.Sprintf("p%d", i) }

type generator struct {
	size   Size
	random *rand.Rand
	now    time.Time
	at     time.Duration
	record *record.Record

	orders, users, legacy, others int
	// steps is the number of updates of each user so far.
	steps       map[string]int
	legacySteps map[string]int
	known, old  []string
}

// id returns a UUIDv7 of now or, for every fifth message, a UUIDv4, as other producers
// choose them. Its random part follows from the seed.
func (g *generator) id() uuid.UUID {
	var id uuid.UUID

	binary.BigEndian.PutUint64(id[:8], g.random.Uint64())
	binary.BigEndian.PutUint64(id[8:], g.random.Uint64())

	version := byte(4)

	if g.random.IntN(5) > 0 {
		version = 7

		var ms [8]byte

		binary.BigEndian.PutUint64(ms[:], uint64(g.now.Add(g.at).UnixMilli()))
		copy(id[:6], ms[2:])
	}

	id[6], id[8] = id[6]&0x0f|version<<4, id[8]&0x3f|0x80

	return id
}

func (g *generator) chance(percent int) bool { return g.random.IntN(100) < percent }

// add adds a message at a later time.
func (g *generator) add(after time.Duration, m record.Message) *record.Message {
	m.At = g.at + after
	g.record.Messages = append(g.record.Messages, &m)

	return &m
}

// soon is up to two seconds.
func (g *generator) soon() time.Duration {
	return time.Duration(g.random.IntN(2000)) * time.Millisecond
}

func (g *generator) next() {
	switch n := g.random.IntN(100); {
	case n < 42:
		g.order()
	case n < 50:
		g.restock()
	case n < 75:
		g.user()
	case n < 79:
		g.legacyUser()
	case n < 84:
		g.notification()
	case n < 93:
		g.track()
	case n < 95 && g.size.Aborted:
		g.aborted()
	default:
		g.bad()
	}
}

// copies adds redeliveries of a message, sometimes.
func (g *generator) copies(m *record.Message) {
	if g.chance(15) {
		again := *m
		again.Copy = true
		g.add(m.At-g.at+g.soon(), again)
	}
}

func (g *generator) order() {
	g.orders++
	id := fmt.Sprintf("o%d", g.orders)
	o := &record.Order{Total: 100 + int64(g.random.IntN(90_000))*10, Declined: g.chance(12)}

	for range 1 + g.random.IntN(2) {
		p := product(g.random.IntN(g.size.Products))
		if !slices.ContainsFunc(o.Lines, func(l record.Line) bool { return l.Product == p }) {
			o.Lines = append(o.Lines, record.Line{Product: p, Quantity: 1 + int64(g.random.IntN(3))})
		}
	}

	if o.Declined {
		o.Total += 3 // the provider declines all amounts that end with 3
	}

	if g.chance(15) {
		o.Cancelled = true
		g.cancel(id)
	}

	m := g.add(0, record.Message{Topic: "orders.created", Key: id, ID: g.id(), Payload: orderPayload(id, o), Fate: record.Applied, Order: o, Keyless: g.chance(10)})

	switch n := g.random.IntN(100); {
	case n < 12:
		g.copies(m)
	case n < 18: // a producer that sends no ids repeats itself: the order's id identifies it
		again := *m
		again.ID, again.Copy = uuid.Nil, true
		g.add(g.soon(), again)
	case n < 21: // another body under the same message id
		g.rival(m, *o)
	case n < 24: // another body for the same order
		other := *o
		other.Total += 1000
		r := *m
		r.ID, r.Payload, r.Fate, r.Order, r.Reason = g.id(), orderPayload(id, &other), record.Rival, &other, "conflict"
		m.Fate = record.Rival
		g.add(g.soon(), r)
	}
}

func (g *generator) rival(m *record.Message, other record.Order) {
	other.Total += 1000
	r := *m
	r.Payload, r.Fate, r.Order, r.Reason = orderPayload(m.Key, &other), record.Rival, &other, "conflict"
	m.Fate = record.Rival
	g.add(g.soon(), r)
}

func orderPayload(id string, o *record.Order) []byte {
	items := make([]map[string]any, len(o.Lines))
	for i, l := range o.Lines {
		items[i] = map[string]any{"product_id": l.Product, "quantity": l.Quantity}
	}

	return encode(map[string]any{"order": map[string]any{"id": id, "items": items, "total_amount": fmt.Sprintf("%d.%02d", o.Total/100, o.Total%100)}})
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // only maps of plain values are encoded
	}

	return data
}

// cancel adds a request that may come before its order, or after its end.
func (g *generator) cancel(order string) {
	m := g.add(g.soon()/2, record.Message{
		Topic: "orders.cancel.requested", Key: order, ID: g.id(), Fate: record.Applied,
		Payload: encode(map[string]any{"order_id": order, "reason": Secret}),
	})
	g.copies(m)
}

func (g *generator) restock() {
	l := &record.Line{Product: product(g.random.IntN(g.size.Products)), Quantity: 1 + int64(g.random.IntN(20))}
	m := g.add(0, record.Message{
		Topic: "inventory.restocked", Key: l.Product, ID: g.id(), Fate: record.Applied, Restock: l,
		Payload: encode(map[string]any{"product_id": l.Product, "quantity": l.Quantity}),
	})
	g.copies(m)
}

// user creates a user or updates one. One creation in six is sent after the first update.
func (g *generator) user() {
	if g.steps == nil {
		g.steps = map[string]int{}
	}

	if len(g.known) > 0 && g.chance(75) {
		g.update(0, g.known[g.random.IntN(len(g.known))])

		return
	}

	g.users++
	id := fmt.Sprintf("u%d", g.users)
	fields := map[string]any{"name": "Proof " + Secret, "email": fmt.Sprintf("%s%d@example.com", Secret, g.users), "step": 0}
	g.known = append(g.known, id)
	after := time.Duration(0)

	if g.chance(16) {
		g.update(0, id)

		after = g.soon()
	}

	body := map[string]any{"id": id}
	maps.Copy(body, fields)

	m := g.add(after, record.Message{
		Topic: "user.created", Key: id, ID: g.id(), Fate: record.Applied,
		Payload: encode(map[string]any{"user": body}), User: &record.User{Create: true, Fields: fields},
	})
	g.copies(m)
}

func (g *generator) update(after time.Duration, id string) {
	g.steps[id]++
	fields := map[string]any{"step": g.steps[id], "note": fmt.Sprintf("%s %d", Secret, g.steps[id])}

	switch g.random.IntN(6) {
	case 0:
		fields["name"] = fmt.Sprintf("Proof %s %d", Secret, g.steps[id])
	case 1:
		fields["email"] = fmt.Sprintf("%s.%s.%d@example.com", Secret, id, g.steps[id])
	}

	m := g.add(after, record.Message{
		Topic: "user.updated", Key: id, ID: g.id(), Fate: record.Applied,
		Payload: encode(map[string]any{"user_id": id, "updates": fields}), User: &record.User{Fields: fields},
	})
	g.copies(m)
}

// legacyUser sends the old format: users of their own, so that one topic has all of a key.
func (g *generator) legacyUser() {
	if g.legacySteps == nil {
		g.legacySteps = map[string]int{}
	}

	if len(g.old) > 0 && g.chance(70) {
		id := g.old[g.random.IntN(len(g.old))]
		g.legacySteps[id]++
		fields := map[string]any{"step": g.legacySteps[id]}
		m := g.add(0, record.Message{
			Topic: "user.events", Key: id, ID: g.id(), Fate: record.Applied, User: &record.User{Fields: fields},
			Payload: encode(map[string]any{"userId": id, "action": "updateUser", "updates": fields}),
		})
		g.copies(m)

		return
	}

	g.legacy++
	id := fmt.Sprintf("l%d", g.legacy)
	g.old = append(g.old, id)
	name, email := "Old "+Secret, fmt.Sprintf("old.%s%d@example.com", Secret, g.legacy)
	m := g.add(0, record.Message{
		Topic: "user.events", Key: id, ID: g.id(), Fate: record.Applied,
		User:    &record.User{Create: true, Fields: map[string]any{"name": name, "email": email}},
		Payload: encode(map[string]any{"userId": id, "userName": name, "userEmail": email, "action": "createUser"}),
	})
	g.copies(m)
}

func (g *generator) notification() {
	if len(g.known) == 0 {
		return
	}

	id := g.known[g.random.IntN(len(g.known))]
	channel := []string{"email", "webhook", "log"}[g.random.IntN(3)]
	m := g.add(0, record.Message{
		Topic: "notifications", Key: id, ID: g.id(), Fate: record.Applied, Channel: channel,
		Payload: encode(map[string]any{"user_id": id, "content": Secret + " says hello", "channel": channel}),
	})
	g.copies(m)
}

func (g *generator) track() {
	name := []string{"viewed", "searched", "bought"}[g.random.IntN(3)]
	key := fmt.Sprintf("t%d", g.random.IntN(20))
	m := g.add(0, record.Message{
		Topic: "analytics.track", Key: key, ID: g.id(), Fate: record.Applied, Event: name,
		Payload: encode(map[string]any{"event": name, "timestamp": g.now.Add(g.at).UTC().Format(time.RFC3339), "user_id": key, "properties": map[string]any{"note": Secret}}),
	})
	g.copies(m)
}

// aborted adds a delivery in a transaction that is aborted.
func (g *generator) aborted() {
	l := &record.Line{Product: product(g.random.IntN(g.size.Products)), Quantity: 1000}
	g.add(0, record.Message{
		Topic: "inventory.restocked", Key: l.Product, ID: g.id(), Fate: record.Aborted, Restock: l,
		Payload: encode(map[string]any{"product_id": l.Product, "quantity": l.Quantity}),
	})
}

// Limits of the service on payloads.
const (
	maxPayload = 1 << 20
	maxDepth   = 64
)

// bad adds a message that no replica can ever apply.
func (g *generator) bad() {
	g.others++
	id := fmt.Sprintf("x%d", g.others)
	m := record.Message{Topic: "orders.created", Key: id, ID: g.id(), Fate: record.Stopped}

	switch n := g.random.IntN(20); {
	case n < 4:
		m.Payload, m.Reason, m.Key = []byte(`{"order":{"id":"`+id+`","product_id":`), "malformed", ""
	case n < 8:
		m.Payload, m.Reason = encode(map[string]any{"order": map[string]any{"id": id, "product_id": "p0", "quantity": -1, "total_amount": "1.00"}}), "invalid"
	case n < 11:
		m.Payload, m.Reason, m.Key = []byte(`{"order":`+strings.Repeat("[", maxDepth)+strings.Repeat("]", maxDepth)+`}`), "malformed", ""
	case n < 13: // a version of the payload that this release does not know
		m.Payload, m.Reason = encode(map[string]any{"order": map[string]any{"id": id, "basket": map[string]any{"schema": 9}}}), "invalid"
	case n < 14 && g.chance(50):
		m.Payload, m.Reason, m.Key = []byte(`{"order":{"id":"`+id+`","note":"`+strings.Repeat(" ", maxPayload)+`"}}`), "too_large", ""
	case n < 17:
		m.Topic, m.Payload, m.Reason = "user.created", encode(map[string]any{"user": map[string]any{"id": id, "name": Secret, "email": "none"}}), "invalid"
	default:
		m.Topic, m.Payload, m.Reason = "payments.requested", encode(map[string]any{"order_id": id, "amount": "1.00"}), "refused"
	}

	g.copies(g.add(0, m))
}
