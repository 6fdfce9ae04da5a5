package simulate_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
)

// accounts know what was sent and what became of it, from the state of the models alone.
type accounts struct {
	// order has the messages of each topic and key in the order in which they were sent
	// or committed; at has their places.
	order map[stream][]uuid.UUID
	at    map[sent]place
	// payloads has the payloads that were sent with an ID.
	payloads map[uuid.UUID][]string
	// appended has the messages that were committed to the outbox, in order, and
	// delivered those that the broker has got.
	appended  map[stream][]uuid.UUID
	delivered map[sent]bool
	applied   map[done]bool
	// stopped has the messages that were ever stopped.
	stopped map[done]bool
}

type stream struct{ topic, key string }

type sent struct {
	topic string
	id    uuid.UUID
}

type place struct {
	stream stream
	n      int
}

type done struct {
	consumer string
	id       uuid.UUID
}

func newAccounts() accounts {
	return accounts{
		order: map[stream][]uuid.UUID{}, at: map[sent]place{}, payloads: map[uuid.UUID][]string{}, appended: map[stream][]uuid.UUID{},
		delivered: map[sent]bool{}, applied: map[done]bool{}, stopped: map[done]bool{},
	}
}

// produced records that a message was sent.
func (a accounts) produced(topic, key string, id uuid.UUID, payload []byte) {
	a.payloads[id] = append(a.payloads[id], string(payload))

	if _, known := a.at[sent{topic, id}]; known {
		return
	}

	s := stream{topic, key}
	a.at[sent{topic, id}] = place{s, len(a.order[s])}
	a.order[s] = append(a.order[s], id)
}

// twins reports whether two payloads were sent with an ID.
func (a accounts) twins(id uuid.UUID) bool {
	return slices.ContainsFunc(a.payloads[id], func(p string) bool { return p != a.payloads[id][0] })
}

// published checks that the broker gets the messages of a key in the order of their
// commits, at least the first time, and nothing that was not committed.
func (a accounts) published(w *world, topic, key string, id uuid.UUID) {
	s := stream{topic, key}
	at := slices.Index(a.appended[s], id)

	if at < 0 {
		w.problemf("%s was published and never committed", id)
	}

	if a.delivered[sent{topic, id}] {
		return
	}

	a.delivered[sent{topic, id}] = true

	for _, earlier := range a.appended[s][:max(at, 0)] {
		if !a.delivered[sent{topic, earlier}] {
			w.problemf("%s was published on %s before %s, which is earlier with key %s", id, topic, earlier, key)
		}
	}
}

// topicOf returns the topic of a consumer.
func topicOf(consumer string) string {
	if consumer == "ledger" || consumer == "journal" {
		return topicOrders
	}

	return topicResults
}

// committing checks a transaction that is about to be committed. The world is locked.
func (w *world) committing(before, next *tables) {
	for _, seq := range slices.Sorted(maps.Keys(next.outbox)) {
		if _, was := before.outbox[seq]; !was {
			r := next.outbox[seq]
			s := stream{r.topic, r.key}
			w.accounts.appended[s] = append(w.accounts.appended[s], r.id)
			w.accounts.produced(r.topic, r.key, r.id, r.payload)
		}
	}

	w.checkOutbox(before, next)

	for _, e := range next.effects[len(before.effects):] {
		w.applies(next, e)
	}

	for _, id := range slices.Sorted(maps.Keys(next.failed)) {
		old, was := before.failed[id]
		if r := next.failed[id]; !was || old.state != r.state {
			w.tracef("postgres: %s %s is %s: %s %s", r.consumer, r.messageID, r.state, r.reason, firstLine(r.err))
			w.checkFailed(r)
		}
	}

	for _, id := range slices.Sorted(maps.Keys(before.failed)) {
		r := before.failed[id]
		if _, is := next.failed[id]; is {
			continue
		}

		if _, claimed := next.inbox[claim{r.consumer, r.messageID}]; !claimed {
			w.problemf("failed message %d (%s) of %s was deleted and not applied", id, r.messageID, r.consumer)
		}
	}
}

// checkOutbox checks that a row that leaves the outbox is where it should be.
func (w *world) checkOutbox(before, next *tables) {
	for seq, r := range before.outbox {
		if _, is := next.outbox[seq]; is {
			continue
		}

		switch {
		case w.mode == modeEmbedded:
			w.acknowledgedIn(next, r.topic, r.id, r.payload, fmt.Sprint("row ", seq))
		case !w.accounts.delivered[sent{r.topic, r.id}]:
			w.problemf("%s was deleted from the outbox and never published", r.id)
		}
	}
}

// applies checks an effect: it is the first of its message, and nothing earlier with the
// key is missing, unless that was stopped.
func (w *world) applies(next *tables, e effect) {
	w.tracef("postgres: %s applies %s (%s %d)", e.consumer, e.id, e.key, e.n)

	if w.accounts.applied[done{e.consumer, e.id}] {
		w.problemf("%s applied %s twice", e.consumer, e.id)
	}

	w.accounts.applied[done{e.consumer, e.id}] = true

	if _, claimed := next.inbox[claim{e.consumer, e.id}]; !claimed {
		w.problemf("%s applied %s without a claim", e.consumer, e.id)
	}

	at, known := w.accounts.at[sent{topicOf(e.consumer), e.id}]
	if !known {
		// A requeued message whose id was applied with another payload meanwhile gets a new id.
		if !slices.ContainsFunc(slices.Collect(maps.Values(next.failed)), func(r failedRow) bool { return deref(r.appliedAs) == e.id }) {
			w.problemf("%s applied %s, which nobody sent", e.consumer, e.id)
		}

		return
	}

	for _, earlier := range w.accounts.order[at.stream][:at.n] {
		// An effect that was performed is recorded, whatever an operator requeued meanwhile.
		overtakes := next.overtakable(e.consumer, earlier) || e.consumer == "mailer" && w.accounts.stopped[done{e.consumer, earlier}]
		if !w.accounts.applied[done{e.consumer, earlier}] && !overtakes {
			w.problemf("%s applied %s (%s %d) before %s, which is earlier", e.consumer, e.id, e.key, e.n, earlier)
		}
	}
}

// overtakable reports whether later messages may be applied before a message: it is
// stopped, or was discarded.
func (t *tables) overtakable(consumer string, id uuid.UUID) bool {
	for _, r := range t.failed {
		if r.consumer == consumer && r.messageID == id && r.state != "waiting" {
			return true
		}
	}

	return false
}

// checkFailed checks a message that is stored as failed: it has its payload, and it is
// stopped for a reason of its own.
func (w *world) checkFailed(r failedRow) {
	if !slices.Contains(w.accounts.payloads[r.messageID], string(r.payload)) {
		w.problemf("failed message %d (%s) has another payload: %q", r.id, r.messageID, r.payload)
	}

	if r.state != "stopped" {
		return
	}

	w.accounts.stopped[done{r.consumer, r.messageID}] = true

	var bad bool
	for _, p := range w.accounts.payloads[r.messageID] {
		bad = bad || malformed([]byte(p)) || strings.Contains(p, `"bad":true`)
	}

	// A conflicting message gets a new id when it is requeued, which the handler sees.
	p := w.plan(r.consumer, cmp.Or(deref(r.appliedAs), r.messageID))
	skipped := r.reason == string(event.ReasonConflict) || strings.HasPrefix(r.err, "skipped by")

	if p.failures == 0 && !bad && !skipped {
		w.problemf("%s stopped %s, which was nobody's fault: %s %s", r.consumer, r.messageID, r.reason, r.err)
	}
}

// acknowledged checks that what is acknowledged to the broker is settled.
func (w *world) acknowledged(topic string, r record, where string) {
	w.acknowledgedIn(w.server.now, topic, uuid.MustParse(r.headers[event.HeaderWatermillID]), r.payload, where)
}

func (w *world) acknowledgedIn(t *tables, topic string, id uuid.UUID, payload []byte, where string) {
	sum := event.Fingerprint(payload)

	for _, consumer := range w.consumersOf(topic) {
		claimed, is := t.inbox[claim{consumer, id}]
		if is && claimed == sum {
			continue
		}

		if !slices.ContainsFunc(slices.Collect(maps.Values(t.failed)), func(r failedRow) bool {
			return r.consumer == consumer && r.messageID == id && r.fingerprint == sum
		}) {
			w.problemf("%s (%s) was acknowledged, but %s has neither applied nor stored it", where, id, consumer)
		}
	}
}

// verify checks the end: everything was applied once, or discarded.
func (w *world) verify() {
	now := w.server.now

	for s, ids := range w.accounts.order {
		for _, id := range ids {
			for _, consumer := range w.consumersOf(s.topic) {
				if !w.accounts.applied[done{consumer, id}] && !now.overtakable(consumer, id) {
					w.problemf("%s of key %s was never applied by %s", id, s.key, consumer)
				}
			}

			if s.topic == topicOrders && w.accounts.applied[done{"ledger", id}] {
				if _, sent := w.accounts.at[sent{topicResults, event.ForeignID("result", id.String())}]; !sent {
					w.problemf("the ledger applied %s and published nothing", id)
				}
			}
		}
	}

	for k, row := range now.keys {
		if row.due != nil || row.leasedUntil != nil {
			w.problemf("key %v is left behind", k)
		}
	}
}
