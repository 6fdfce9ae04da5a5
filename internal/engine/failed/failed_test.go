package failed_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
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

func check(consumer string, payload []byte) (string, error) {
	if consumer != "writer" {
		return "", fmt.Errorf("consumer %s no longer exists", consumer)
	}

	n, err := event.Decode[note](payload)

	return n.ID, err
}

var alice = activity.Actor{Who: "alice", Why: "it is fixed"}

func body(key, text string) []byte { return fmt.Appendf(nil, `{"id":%q,"text":%q}`, key, text) }

func entry(key, text string) failed.Entry {
	return failed.Entry{
		Consumer: "writer", Topic: "notes", MessageID: event.NewID(), Origin: "test", Key: key,
		Headers: event.Headers{"from": "test", "binary": "\xff\x00"}, Payload: body(key, text),
		Reason: event.ReasonFailed, Error: fmt.Sprintf("writing note %q: no space for %d bytes", key, len(text)),
	}
}

// rig is a store with its own database.
type rig struct {
	*failed.Store

	t    *testing.T
	pool *pgxpool.Pool
}

func newRig(t *testing.T) rig {
	t.Helper()

	pool := pgtest.New(t)

	return rig{Store: failed.NewStore(failed.Config{Release: "1.0"}, pool), t: t, pool: pool}
}

// add stores entries and returns the ID of the last.
func (r rig) add(entries ...failed.Entry) int64 {
	r.t.Helper()

	for _, e := range entries {
		if err := r.Stop(r.t.Context(), e); err != nil {
			r.t.Fatal(err)
		}
	}

	return pgtest.Value[int64](r.t, r.pool, `SELECT max(id) FROM failed_messages`)
}

func (r rig) get(id int64) failed.Entry {
	r.t.Helper()

	e, err := r.Get(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}

	return e
}

func (r rig) requeue(f failed.Filter) failed.Outcome {
	r.t.Helper()

	outcome, err := r.Requeue(r.t.Context(), f, alice, failed.Pace{}, check)
	if err != nil {
		r.t.Fatal(err)
	}

	return outcome
}

// sent is a waiting message as its consumer would receive it.
type sent struct {
	Key      string
	Entry    failed.Entry
	Attempts int
	Payload  string
}

// waiting returns the waiting messages in order of arrival.
func (r rig) waiting() (list []sent) {
	r.t.Helper()

	entries, err := r.List(r.t.Context(), failed.Filter{State: failed.Waiting}, 1000)
	if err != nil {
		r.t.Fatal(err)
	}

	slices.Reverse(entries)

	for _, e := range entries {
		key := pgtest.Value[string](r.t, r.pool, `SELECT failed_key FROM failed_messages WHERE id = $1`, e.ID)
		list = append(list, sent{Key: key, Entry: e, Attempts: e.Attempts, Payload: string(e.Current())})
	}

	return list
}

// apply imitates a retry loop whose attempts all succeed: it leases the due keys,
// finishes their messages and returns them.
func (r rig) apply() (list []sent) {
	r.t.Helper()

	leases, err := r.Lease(context.Background(), map[string]int{"writer": 1000}, time.Minute)
	if err != nil {
		r.t.Fatal(err)
	}

	for _, lease := range leases {
		k := lease.Key

		for {
			e, ok, err := r.Head(context.Background(), k, 0, nil)
			if err == nil && ok {
				list = append(list, sent{Key: k.Key, Entry: e.Entry, Attempts: e.Attempts, Payload: string(e.Current())})
				err = r.Finish(context.Background(), e.Entry)
			}

			if err != nil {
				r.t.Fatal(err)
			}

			if !ok {
				break
			}
		}

		if err := r.EndLease(context.Background(), lease, 0); err != nil {
			r.t.Fatal(err)
		}
	}

	return list
}

// history lists the actions on an entry.
func (r rig) history(id int64) string {
	r.t.Helper()

	actions, err := r.Actions(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}

	var done []string
	for _, a := range actions {
		done = append(done, string(a.Action)+" by "+a.Who+": "+a.Why)
	}

	return strings.Join(done, "; ")
}

// claim marks a message as applied in the inbox.
func (r rig) claim(id uuid.UUID, payload []byte) {
	r.t.Helper()

	batch := &pgx.Batch{}
	inbox.ClaimNew(batch, "writer", []inbox.Entry{{ID: id, Fingerprint: event.Fingerprint(payload)}})

	if err := r.pool.SendBatch(r.t.Context(), batch).Close(); err != nil {
		r.t.Fatal(err)
	}
}

func TestAMessageWithoutABodyIsStored(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("a", "x")
	e.Payload, e.Headers = nil, nil

	if got := r.get(r.add(e)); got.Payload == nil || len(got.Payload) != 0 || len(got.Headers) != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestSummariesOmitLargeFields(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("a", "x"), entry("b", "x"))

	if _, err := r.Edit(t.Context(), 1, failed.Edit{Payload: body("a", "y")}, alice, check); err != nil {
		t.Fatal(err)
	}

	list, err := r.Summaries(t.Context(), failed.Filter{}, 10)
	if err != nil || len(list) != 2 {
		t.Fatalf("got %+v, %v", list, err)
	}

	for _, e := range list {
		if len(e.Payload)+len(e.Headers)+len(e.Edited) != 0 || (e.Edited != nil) != (e.ID == 1) || e.Cause == "" {
			t.Errorf("got %+v", e)
		}
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	first := entry("a", "x")
	second := entry("b", "x")
	second.Consumer, second.Topic, second.Reason, second.Error = "other", "others", event.ReasonInvalid, "text: is missing"
	third := entry("\x00\xff", "x") // a key that is not text
	r.add(first, second, third)

	if _, err := r.Discard(t.Context(), failed.Filter{IDs: []int64{3}}, alice, failed.Pace{}); err != nil {
		t.Fatal(err)
	}

	hour := time.Now().Add(time.Hour)

	for name, c := range map[string]struct {
		filter failed.Filter
		want   []int64
	}{
		"nothing":    {failed.Filter{}, []int64{3, 2, 1}},
		"ids":        {failed.Filter{IDs: []int64{1, 3, 9}}, []int64{3, 1}},
		"no ids":     {failed.Filter{IDs: []int64{}}, nil},
		"topic":      {failed.Filter{Topic: "others"}, []int64{2}},
		"consumer":   {failed.Filter{Consumer: "writer"}, []int64{3, 1}},
		"reason":     {failed.Filter{Reason: event.ReasonInvalid}, []int64{2}},
		"key":        {failed.Filter{Key: "a"}, []int64{1}},
		"odd key":    {failed.Filter{Key: "\x00\xff"}, []int64{3}},
		"group":      {failed.Filter{Group: r.get(2).Group}, []int64{2}},
		"message":    {failed.Filter{MessageID: second.MessageID}, []int64{2}},
		"open":       {failed.Filter{State: failed.Stopped}, []int64{2, 1}},
		"discarded":  {failed.Filter{Resolution: failed.Discarded}, []int64{3}},
		"since":      {failed.Filter{Since: hour}, nil},
		"until":      {failed.Filter{Until: hour}, []int64{3, 2, 1}},
		"before":     {failed.Filter{Before: 3}, []int64{2, 1}},
		"after":      {failed.Filter{After: 1, Topic: "notes"}, []int64{3}},
		"revision":   {failed.Filter{Revision: 2}, []int64{3}},
		"not a text": {failed.Filter{Topic: "\x00", Group: "\xff"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			entries, err := r.List(context.Background(), c.filter, 10)
			if err != nil {
				t.Fatal(err)
			}

			var got []int64
			for _, e := range entries {
				got = append(got, e.ID)
			}

			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCauseIgnoresVariableValues(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		one, other failed.Entry
		want       string
	}{
		"numbers and quotes": {
			failed.Entry{Error: `order.items[0].quantity: is 5, expected at most 3; product "shoe" is unknown`},
			failed.Entry{Error: `order.items[12].quantity: is 71, expected at most 99; product "ha\"t 1" is unknown`},
			`order.items[?].quantity: is ?, expected at most ?; product ? is unknown`,
		},
		"ids, times and addresses": {
			failed.Entry{Error: `order order_123 of bob@example.com at 2026-10-01T10:00:00.5Z: Post https://a.example/x: 0189-aa`},
			failed.Entry{Error: `order order-9 of carol+x@example.org at 2025-01-02T03:04:05Z: Post http://b.example/y?z=1: fe01`},
			`order ? of ? at ?: Post ?`,
		},
		"an id that is a word": {
			failed.Entry{Key: "blue-shoes", Error: "there is no order blue-shoes"},
			failed.Entry{Payload: []byte(`{"order":{"lines":[{"product_id":"hats"}]}}`), Error: "there is no order hats"},
			"there is no order ?",
		},
		"lists": {
			failed.Entry{Error: `unknown: "a", "b" and "c"`},
			failed.Entry{Error: `unknown: "a"`},
			`unknown: ?`,
		},
		"more lines": {
			failed.Entry{Error: "it broke\nhere"},
			failed.Entry{Error: "it broke\nthere"},
			"it broke",
		},
		"a panic in two releases": {
			failed.Entry{Reason: event.ReasonPanicked, Error: "handler panicked: oh\ngoroutine 7 [running]:\npanic({0x1, 0x2})\n\t/p.go:3\ngithub.com/millracehq/millrace/internal/shop/order.(*Service).Lock(0x1)\n\t/o.go:1\n"},
			failed.Entry{Reason: event.ReasonPanicked, Error: "handler panicked: oh\ngoroutine 9 [running]:\npanic({0x9, 0x2})\n\t/p.go:9\ngithub.com/millracehq/millrace/internal/shop/order.(*Service).Lock(0x5)\n\t/o.go:77\n"},
			"handler panicked: oh in order.(*Service).Lock",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			if one, other := failed.Cause(c.one), failed.Cause(c.other); one != c.want || other != c.want {
				t.Errorf("got %q and %q, expected %q", one, other, c.want)
			}
		})
	}
}

func TestCauseTellsDifferentErrorsApart(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct{ one, other failed.Entry }{
		"an id inside of a word": {
			failed.Entry{Key: "ord", Error: "there is no order"},
			failed.Entry{Key: "there", Error: "there is no order"},
		},
		"names of the schema": {
			failed.Entry{Error: `new row for relation "stock" violates check constraint "stock_available" (SQLSTATE 23514)`},
			failed.Entry{Error: `new row for relation "stock" violates check constraint "stock_sold" (SQLSTATE 23514)`},
		},
		"panics of two functions": {
			failed.Entry{Reason: event.ReasonPanicked, Error: "handler panicked: oh\ngoroutine 7 [running]:\nruntime/debug.Stack()\n\t/x.go:1\npanic({0x1, 0x2})\n\t/p.go:3\nruntime.panicmem()\n\t/r.go:1\ngithub.com/millracehq/millrace/internal/shop/order.Place(0x1)\n\t/o.go:1\n"},
			failed.Entry{Reason: event.ReasonPanicked, Error: "handler panicked: oh\ngoroutine 9 [running]:\npanic({0x1, 0x2})\n\t/p.go:9\ngithub.com/millracehq/millrace/internal/shop/order.(*Service).Lock(0x5)\n\t/o.go:1\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			if one, other := failed.Cause(c.one), failed.Cause(c.other); one == other {
				t.Errorf("both causes are %q", one)
			}
		})
	}
}

func FuzzCause(f *testing.F) {
	f.Add("order \"x\" is 5", "key", `{"id":"x"}`)
	f.Add("\xff\x00", "\xff", "{")
	f.Fuzz(func(t *testing.T, text, key, payload string) {
		cause := failed.Cause(failed.Entry{Error: text, Key: key, Payload: []byte(payload), Reason: event.ReasonPanicked})
		if len(cause) > 300 || event.Text(cause) != cause || strings.Contains(cause, "\n") {
			t.Errorf("%q is not a valid cause", cause)
		}
	})
}

func TestGroupsCountMessagesByCause(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("a", "x"), entry("a", "xx"), entry("b", "xxx"))

	later := rig{Store: failed.NewStore(failed.Config{Release: "1.1"}, r.pool), t: t, pool: r.pool}
	bad := entry("c", "")
	bad.Reason, bad.Error = event.ReasonInvalid, "text: is missing"
	later.add(entry("c", "xxxx"), bad)

	groups, err := r.Groups(t.Context(), failed.Filter{State: failed.Stopped}, failed.GroupsAfter{}, 10)
	if err != nil || len(groups) != 2 {
		t.Fatalf("got %+v, %v", groups, err)
	}

	g := groups[0]
	if g.Entries != 4 || g.Keys != 3 || g.FirstRelease != "1.0" || g.LastRelease != "1.1" ||
		g.Cause != "writing note ?: no space for ? bytes" || g.Error != `writing note "c": no space for 4 bytes` || g.FirstAt.After(g.LastAt) {
		t.Errorf("got %+v", g)
	}

	next, err := r.Groups(t.Context(), failed.Filter{}, failed.GroupsAfter{Entries: g.Entries, ID: g.ID}, 10)
	if err != nil || len(next) != 1 || next[0].ID != groups[1].ID {
		t.Errorf("after the first: %+v, %v", next, err)
	}

	counts, err := r.CountBy(t.Context(), failed.Filter{}, "release", 10)
	if err != nil || len(counts) != 2 || counts[0].Value != "1.0" || counts[0].Entries != 3 || counts[0].Keys != 2 {
		t.Errorf("by release: %+v, %v", counts, err)
	}
}

func TestRequeueKeepsTheOrderOfArrivalPerKey(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	want := map[string][]string{}

	for i := range 350 { // several chunks
		key := fmt.Sprintf("k%d", i%7)
		want[key] = append(want[key], string(body(key, fmt.Sprint(i))))
		r.add(entry(key, fmt.Sprint(i)))
	}

	if o := r.requeue(failed.Filter{Topic: "notes"}); o.Done != 350 || o.Selected != 350 || o.Refused != 0 {
		t.Fatalf("got %+v", o)
	}

	got := map[string][]string{}

	for _, m := range r.apply() {
		got[m.Key] = append(got[m.Key], m.Payload)

		if m.Entry.Consumer != "writer" || m.Entry.Headers["binary"] != "\xff\x00" {
			t.Fatalf("sent %+v", m)
		}
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages WHERE resolution = 'applied'`); n != 350 {
		t.Errorf("%d entries are resolved", n)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_keys`); n != 0 {
		t.Errorf("%d keys are still waiting", n)
	}

	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestConcurrentRequeuesTakeEachEntryOnceAndInOrder(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for i := range 400 {
		r.add(entry(fmt.Sprintf("k%d", i%3), fmt.Sprint(i)))
	}

	var done atomic.Int64

	requeued := make(chan struct{})

	go func() {
		defer close(requeued)

		var running sync.WaitGroup

		for _, f := range []failed.Filter{{Topic: "notes"}, {Consumer: "writer"}, {Topic: "notes"}} {
			running.Go(func() {
				o, err := r.Requeue(context.Background(), f, alice, failed.Pace{}, check)
				if err != nil || o.Refused != 0 {
					t.Errorf("got %+v, %v", o, err)
				}

				done.Add(int64(o.Done))
			})
		}

		running.Wait()
	}()

	applied := r.applyUntil(requeued) // as the retry loop does concurrently
	ascends(t, applied)

	if n := len(applied); n != 400 || done.Load() != 400 {
		t.Errorf("%d messages, %d counted", n, done.Load())
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM operator_actions WHERE action = 'requeued'`); n != 400 {
		t.Errorf("%d actions", n)
	}
}

// applyUntil applies messages until over is closed, and then those that are left.
func (r rig) applyUntil(over <-chan struct{}) (list []sent) {
	r.t.Helper()

	for {
		select {
		case <-over:
			return append(list, r.apply()...)
		default:
			list = append(list, r.apply()...)
		}
	}
}

// ascends fails the test unless the texts of the notes of each key are ascending numbers.
func ascends(t *testing.T, messages []sent) {
	t.Helper()

	last := map[string]int{}

	for _, m := range messages {
		var n int
		if _, err := fmt.Sscanf(m.Payload, `{"id":"`+m.Key+`","text":"%d"}`, &n); err != nil {
			t.Fatalf("%s: %v", m.Payload, err)
		}

		if before, ok := last[m.Key]; ok && before >= n {
			t.Fatalf("key %s: %d comes after %d", m.Key, n, before)
		}

		last[m.Key] = n
	}
}

func TestUndecodableEntriesAreRefusedUntilEdited(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	bad, behind, gone := entry("a", ""), entry("a", "2"), entry("c", "3")
	bad.Attempts = 7
	gone.Consumer = "retired"
	r.add(bad, behind, gone, entry("b", "4"))

	o := r.requeue(failed.Filter{})
	want := []failed.Refusal{
		{ID: 1, Kind: event.Rejected, Error: "text: is missing"},
		{ID: 2, Kind: event.Conflict, Error: "is blocked by message 1 of the same key, which is still stopped: edit, requeue or discard it first"},
		{ID: 3, Kind: event.Rejected, Error: "consumer retired no longer exists"},
	}

	if diff := cmp.Diff(want, o.Refusals); diff != "" || o.Done != 1 || o.Refused != 3 || o.Selected != 4 {
		t.Errorf("got %+v: %s", o, diff)
	}

	// Selecting the second entry alone does not help.
	if o := r.requeue(failed.Filter{IDs: []int64{2}}); o.Done != 0 || o.Refused != 1 {
		t.Errorf("blocked by a stopped entry: %+v", o)
	}

	if _, err := r.Edit(t.Context(), 1, failed.Edit{Revision: 1, Payload: body("z", "fixed"), NewKey: "z"}, alice, check); err != nil {
		t.Fatal(err)
	}

	if o := r.requeue(failed.Filter{Topic: "notes", Consumer: "writer"}); o.Done != 2 || o.Refused != 0 {
		t.Errorf("got %+v", o)
	}

	rows := r.waiting()
	if m := rows[0]; m.Key != "z" || m.Payload != string(body("z", "fixed")) || m.Entry.ApplyID() != bad.MessageID || m.Attempts != 7 || m.Entry.AppliedAs != nil {
		t.Errorf("sent %+v", m)
	}

	if m := rows[1]; m.Key != "a" || m.Attempts != 0 {
		t.Errorf("sent %+v", m)
	}

	if got := r.history(1); got != "edited by alice: it is fixed; requeued by alice: it is fixed" {
		t.Errorf("history: %s", got)
	}
}

func TestOnlyAStoppedEntryOfTheSameRevisionIsEdited(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	bad := entry("a", "")
	r.add(bad)

	_, err := r.Edit(t.Context(), 1, failed.Edit{Payload: []byte(`{"id":"z"}`), NewKey: "z"}, alice, check)
	if rejection, ok := errors.AsType[*event.RejectError](err); !ok || rejection.Error() != "text: is missing" || r.get(1).Edited != nil {
		t.Errorf("an invalid edit: %v", err)
	}

	edited, err := r.Edit(t.Context(), 1, failed.Edit{Revision: 1, Payload: body("z", "fixed"), NewKey: "z"}, alice, check)
	if err != nil || edited.Revision != 2 || string(edited.Payload) != string(bad.Payload) {
		t.Fatalf("got %+v, %v", edited, err)
	}

	if _, err := r.Edit(t.Context(), 1, failed.Edit{Revision: 1, Payload: body("z", "again")}, alice, check); event.KindOf(err) != event.Changed {
		t.Errorf("an edit with an old revision: %v", err)
	}

	if _, err := r.Edit(t.Context(), 1, failed.Edit{Revision: 2, Payload: body("z", "fixed")}, alice, check); err != nil || r.get(1).Revision != 2 {
		t.Errorf("a repeated edit: %v, %+v", err, r.get(1))
	}

	// Only the edit that changed something is in its history.
	if got := r.history(1); got != "edited by alice: it is fixed" {
		t.Errorf("history: %s", got)
	}

	r.requeue(failed.Filter{})

	if _, err := r.Edit(t.Context(), 1, failed.Edit{Payload: body("z", "late")}, alice, check); event.KindOf(err) != event.Conflict {
		t.Errorf("an edit of a requeued entry: %v", err)
	}
}

func TestOutOfOrderIsOptional(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("a", "1"), entry("a", "2"))

	o, err := r.Requeue(t.Context(), failed.Filter{IDs: []int64{2}}, alice, failed.Pace{OutOfOrder: true}, check)
	if err != nil || o.Done != 1 {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestConsecutivePartialRunsKeepTheOrder(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("a", ""), entry("b", "2"), entry("a", "3"), entry("b", "4"))

	first, err := r.Requeue(t.Context(), failed.Filter{Topic: "notes"}, alice, failed.Pace{Limit: 2}, check)
	if err != nil || first.Done != 1 || first.Refused != 1 || first.Last != 2 {
		t.Fatalf("got %+v, %v", first, err)
	}

	second, err := r.Requeue(t.Context(), failed.Filter{Topic: "notes", After: first.Last}, alice, failed.Pace{Limit: 2}, check)
	if err != nil || second.Done != 1 || second.Refused != 1 || second.Refusals[0].ID != 3 {
		t.Errorf("the next part: %+v, %v", second, err)
	}
}

func TestAnIDAppliedWithAnotherBodyIsReplaced(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("a", "the second body")
	e.Reason, e.Error = event.ReasonConflict, inbox.ErrConflict.Error()
	id := r.add(e)
	r.claim(e.MessageID, body("a", "the first body"))

	r.requeue(failed.Filter{IDs: []int64{id}})

	first := r.waiting()[0].Entry
	if first.ApplyID() == e.MessageID || first.MessageID != e.MessageID || *r.get(id).AppliedAs != first.ApplyID() {
		t.Fatalf("sent %+v for %s", first, e.MessageID)
	}

	// When it fails under the new ID, the entry is stopped again and keeps that ID.
	again := first
	again.Reason, again.Error = event.ReasonFailed, "no luck"
	r.add(again)

	if got := r.get(id); got.State != failed.Stopped || got.Error != "no luck" || got.Deliveries != 2 || got.MessageID != e.MessageID {
		t.Errorf("got %+v", got)
	}

	r.requeue(failed.Filter{})

	if second := r.waiting()[0].Entry; second.ApplyID() != first.ApplyID() || second.MessageID != e.MessageID {
		t.Errorf("sent %+v", second)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages`); n != 1 {
		t.Errorf("%d entries", n)
	}
}

func TestAnotherFailureReopensTheEntry(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("a", "")
	e.Reason, e.Error = event.ReasonInvalid, "text: is missing"
	id := r.add(e)

	if _, err := r.Edit(t.Context(), id, failed.Edit{Payload: body("a", "fixed")}, alice, check); err != nil {
		t.Fatal(err)
	}

	r.requeue(failed.Filter{})

	if got := r.get(id); got.State != failed.Waiting {
		t.Fatalf("got %+v", got)
	}

	// The entry fails again; it is found by its ID.
	later := rig{Store: failed.NewStore(failed.Config{Release: "1.1"}, r.pool), t: t, pool: r.pool}
	again := r.get(id)
	again.Reason, again.Error, again.Attempts = event.ReasonFailed, "no luck", 9
	later.add(again)

	got := r.get(id)
	if got.State != failed.Stopped || got.Resolution != "" || got.ResolvedAt != nil || got.Deliveries != 2 || got.Attempts != 9 || got.Error != "no luck" ||
		got.FirstRelease != "1.0" || got.LastRelease != "1.1" || string(got.Payload) != string(e.Payload) || string(got.Edited) != string(body("a", "fixed")) {
		t.Errorf("got %+v", got)
	}

	if got := r.history(id); got != "edited by alice: it is fixed; requeued by alice: it is fixed; reopened by millrace: no luck" {
		t.Errorf("history: %s", got)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages`); n != 1 {
		t.Errorf("%d entries", n)
	}
}

// A message whose payload an operator has repaired is delivered once more, because the
// replica that stopped it died before it acknowledged it.
func TestARedeliveryDoesNotUndoARepair(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("a", "")
	e.Reason, e.Error = event.ReasonInvalid, "text: is missing"
	id := r.add(e)

	if _, err := r.Edit(t.Context(), id, failed.Edit{Payload: body("a", "fixed")}, alice, check); err != nil {
		t.Fatal(err)
	}

	r.requeue(failed.Filter{})
	r.add(e)

	if got := r.get(id); got.State != failed.Waiting || got.Deliveries != 2 {
		t.Errorf("before the edited payload is applied: %+v", got)
	}

	if err := r.Finish(t.Context(), r.get(id)); err != nil {
		t.Fatal(err)
	}

	r.add(e)

	if got := r.get(id); got.State != failed.Resolved || got.Resolution != failed.Applied || got.ResolvedAt == nil || got.Deliveries != 3 {
		t.Errorf("after the edited payload was applied: %+v", got)
	}

	if got := r.history(id); got != "edited by alice: it is fixed; requeued by alice: it is fixed" {
		t.Errorf("history: %s", got)
	}
}

// A process may die while it counts the redelivery of a message that is already stored. It
// leaves no key behind.
func TestARedeliveryThatIsInterruptedLeavesNoKey(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("a", "x")
	id := r.add(e)

	if err := r.Finish(t.Context(), r.get(id)); err != nil {
		t.Fatal(err)
	}

	tx, err := r.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()

	if _, err := tx.Exec(t.Context(), `SELECT FROM failed_messages WHERE id = $1 FOR UPDATE`, id); err != nil {
		t.Fatal(err)
	}

	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()

	stopped := make(chan error, 1)

	go func() { stopped <- r.Stop(ctx, e) }()

	pgtest.Eventually(t, "the redelivery waits for the message", pgtest.LockWaits(t, r.pool))
	interrupt()

	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, expected an interruption", err)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*) FROM failed_keys`); n != 0 {
		t.Errorf("%d keys without messages are left", n)
	}
}

func TestDiscardNeedsAReasonAndIsFinal(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("a", "x")
	id := r.add(e)

	if _, err := r.Discard(t.Context(), failed.Filter{}, activity.Actor{Who: "alice"}, failed.Pace{}); !errors.Is(err, failed.ErrNoReason) {
		t.Errorf("without a reason: %v", err)
	}

	if _, err := r.Discard(t.Context(), failed.Filter{}, activity.Actor{Why: "because"}, failed.Pace{}); !errors.Is(err, activity.ErrNoActor) {
		t.Errorf("without an actor: %v", err)
	}

	if o, err := r.Discard(t.Context(), failed.Filter{}, alice, failed.Pace{DryRun: true}); err != nil || o.Done != 1 || r.get(id).State != failed.Stopped {
		t.Errorf("a dry run: %+v, %v", o, err)
	}

	if o, err := r.Discard(t.Context(), failed.Filter{}, alice, failed.Pace{}); err != nil || o.Done != 1 {
		t.Errorf("got %+v, %v", o, err)
	}

	r.add(e) // delivered once more
	r.requeue(failed.Filter{})

	if got := r.get(id); got.Resolution != failed.Discarded || got.Deliveries != 2 || got.ResolvedAt == nil || len(r.waiting()) != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestAnActionThatCannotBeRecordedIsRolledBack(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	id := r.add(entry("a", "x"))

	if _, err := r.pool.Exec(t.Context(), `ALTER TABLE operator_actions ADD CONSTRAINT none CHECK (false)`); err != nil {
		t.Fatal(err)
	}

	_, requeueErr := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{}, check)
	_, discardErr := r.Discard(t.Context(), failed.Filter{}, alice, failed.Pace{})
	_, editErr := r.Edit(t.Context(), id, failed.Edit{Payload: body("a", "y")}, alice, check)

	for name, err := range map[string]error{"requeue": requeueErr, "discard": discardErr, "edit": editErr} {
		if err == nil {
			t.Errorf("%s took effect", name)
		}
	}

	if got := r.get(id); got.State != failed.Stopped || got.Edited != nil || len(r.waiting()) != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for i := range 150 {
		r.add(entry("a", fmt.Sprint(i)))
	}

	r.add(entry("b", ""))

	o, err := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{DryRun: true}, check)
	if err != nil || o.Done != 150 || o.Refused != 1 || !o.DryRun || len(r.waiting()) != 0 || r.get(1).State != failed.Stopped {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestARunStopsBetweenChunksAndIsPaced(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for i := range 30 {
		r.add(entry(fmt.Sprint(i), "x"))
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	var steps []int

	o, err := r.Requeue(ctx, failed.Filter{}, alice, failed.Pace{PerSecond: 10, Progress: func(done, total int) {
		if steps = append(steps, done); total != 30 {
			t.Errorf("of %d", total)
		}

		if done == 10 {
			cancel() // while the next ten are delayed
		}
	}}, check)

	if !errors.Is(err, context.Canceled) || o.Done != 10 || o.Selected != 30 || !slices.Equal(steps, []int{10}) || len(r.waiting()) != 10 {
		t.Errorf("got %+v, %v, steps %v, %d rows", o, err, steps, len(r.waiting()))
	}

	started := time.Now()

	if o, err := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{PerSecond: 10}, check); err != nil || o.Done != 20 {
		t.Errorf("the rest: %+v, %v", o, err)
	}

	if took := time.Since(started); took < 900*time.Millisecond {
		t.Errorf("20 at 10 a second took %s", took)
	}
}

// Payloads are up to 1 MiB, and a chunk of them is in memory.
func TestAChunkOfLargeMessagesHasFewer(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for i := range 19 {
		r.add(entry(fmt.Sprint(i), strings.Repeat("x", 1<<20-100)))
	}

	var steps []int

	o, err := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{Progress: func(done, _ int) { steps = append(steps, done) }}, check)
	if err != nil || o.Done != 19 || !slices.Equal(steps, []int{17, 19}) {
		t.Errorf("got %+v, %v, steps %v", o, err, steps)
	}
}

func TestExpireDeletesOnlyOldResolvedEntries(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("a", "1"), entry("b", "2"), entry("c", "3"))

	if _, err := r.Discard(t.Context(), failed.Filter{IDs: []int64{1, 2}}, alice, failed.Pace{}); err != nil {
		t.Fatal(err)
	}

	_, err := r.pool.Exec(t.Context(), `
		UPDATE failed_messages SET first_at = now() - interval '9 days', last_at = now() - interval '9 days',
		                  resolved_at = CASE WHEN id = 1 THEN now() - interval '3 days' ELSE resolved_at END`)
	if err != nil {
		t.Fatal(err)
	}

	if n, err := r.Expire(t.Context()); err != nil || n != 0 {
		t.Errorf("without retention: %d, %v", n, err)
	}

	kept := failed.NewStore(failed.Config{Retention: 48 * time.Hour}, r.pool)
	if n, err := kept.Expire(t.Context()); err != nil || n != 1 {
		t.Errorf("got %d, %v", n, err)
	}

	left, err := r.List(t.Context(), failed.Filter{}, 10)
	if err != nil || len(left) != 2 || left[1].ID != 2 || r.history(1) != "" || r.history(2) == "" {
		t.Errorf("left %+v, %v", left, err)
	}
}

func TestDiffComparesJSONByLine(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		payload, edited string
		want            string
	}{
		"not edited":  {`{"a":1}`, "", ""},
		"spaces":      {`{"a":1}`, `{ "a": 1 }`, ""},
		"a field":     {`{"a":1,"b":2}`, `{"a":1,"b":3}`, "--- original\n+++ edited\n@@ -1,4 +1,4 @@\n {\n   \"a\": 1,\n-  \"b\": 2\n+  \"b\": 3\n }"},
		"not a text":  {"\xff\x00", `x`, "--- original\n+++ edited\n@@ -1 +1 @@\n-\"\\xff\\x00\"\n+x"},
		"many lines":  {strings.Repeat("x\n", 20_000), "x", "--- original\n+++ edited\n(20001 and 1 lines are too many to compare)\n"},
		"not JSON":    {"{", "{}", "--- original\n+++ edited\n@@ -1 +1 @@\n-{\n+{}"},
		"big numbers": {`[123456789012345678901234567890]`, `[123456789012345678901234567890]`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			e := failed.Entry{Payload: []byte(c.payload)}
			if c.edited != "" {
				e.Edited = []byte(c.edited)
			}

			if got := failed.Diff(e); strings.TrimSpace(got) != strings.TrimSpace(c.want) {
				t.Errorf("got\n%s", got)
			}
		})
	}
}
