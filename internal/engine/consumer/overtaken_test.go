package consumer_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

var ann = activity.Actor{Who: "ann", Why: "it is fixed"}

// sendTexts sends a message with the key for each text, one after the other.
func (r *rig) sendTexts(key string, texts []string) {
	r.t.Helper()

	for _, text := range texts {
		r.send(message(key, text))
	}
}

// requeueSome requeues messages and waits until the requeued ones are applied or stopped.
func (r *rig) requeueSome(f failed.Filter, pace failed.Pace) failed.Outcome {
	r.t.Helper()

	out, err := r.failed.Requeue(context.Background(), f, ann, pace, r.router.Check)
	if err != nil {
		r.t.Fatal(err)
	}

	r.settle()

	return out
}

// refusals lists the messages that stayed stopped: the ID, the number of later messages
// applied, and the last of those.
func refusals(out failed.Outcome) string {
	var list []string

	for _, r := range out.Refusals {
		text := fmt.Sprintf("%d %s", r.ID, r.Kind)
		if o := r.Overtaken; o != nil {
			text += fmt.Sprintf(" by %d of %s", o.Messages, o.Key)
		}

		list = append(list, text)
	}

	return strings.Join(list, ", ")
}

func TestAnOvertakenMessageIsRequeuedOnlyWithTheWord(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		// fail lists the values that fail until they are requeued.
		fail, send, other []string
		attempts          int
		// refused lists what stays stopped without Pace.Overtaken; then and end are the
		// texts applied without and with it.
		refused, then, end string
	}{
		"nothing came after it":     {fail: []string{"1"}, send: []string{"1"}, then: "1", end: "1"},
		"a later one was applied":   {fail: []string{"1"}, send: []string{"1", "2"}, refused: "1 overtaken by 1 of a", then: "2", end: "2 1"},
		"it was blocked first":      {attempts: 1, fail: []string{"1"}, send: []string{"1", "2", "3"}, refused: "1 overtaken by 2 of a", then: "2 3", end: "2 3 1"},
		"another key does not":      {fail: []string{"1"}, send: []string{"1"}, other: []string{"2", "3"}, then: "1", end: "1"},
		"only those before it":      {fail: []string{"1", "3"}, send: []string{"1", "2", "3"}, refused: "1 overtaken by 1 of a", then: "2 3", end: "2 3 1"},
		"both before it":            {fail: []string{"1", "2"}, send: []string{"1", "2", "3"}, refused: "1 overtaken by 1 of a, 2 overtaken by 1 of a", then: "3", end: "3 1 2"},
		"none in order of arrival":  {fail: []string{"1", "2", "3"}, send: []string{"1", "2", "3"}, then: "1 2 3", end: "1 2 3"},
		"a newer one goes before":   {fail: []string{"1", "4"}, send: []string{"1", "2", "3", "4"}, refused: "1 overtaken by 2 of a", then: "2 3 4", end: "2 3 4 1"},
		"the first was applied too": {fail: []string{"2"}, send: []string{"1", "2", "3"}, refused: "1 overtaken by 1 of a", then: "1 3", end: "1 3 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			var repaired atomic.Bool

			works := func(n note) bool {
				return repaired.Load() || n.ID != "a" || !strings.Contains(strings.Join(c.fail, " "), n.Text)
			}
			r := start(t, newPool(t), breakable(works), parking(c.attempts))

			r.sendTexts("a", c.send)
			r.sendTexts("b", c.other)
			r.settle()
			repaired.Store(true)

			if got := refusals(r.requeueSome(failed.Filter{}, failed.Pace{})); got != c.refused {
				t.Errorf("stays stopped: %q, expected %q", got, c.refused)
			}

			if got := r.texts("a"); got != c.then {
				t.Errorf("applied %q, expected %q", got, c.then)
			}

			if out := r.requeueSome(failed.Filter{}, failed.Pace{Overtaken: true}); out.Refused != 0 {
				t.Errorf("with the word: %+v", out)
			}

			if got := r.texts("a"); got != c.end {
				t.Errorf("with the word: applied %q, expected %q", got, c.end)
			}

			if n := pgtest.Value[int](t, r.pool, `SELECT (SELECT count(*) FROM failed_keys)::int + (SELECT count(*) FROM overtaking_messages)::int`); n != 0 {
				t.Errorf("%d rows are left for keys without failed messages", n)
			}
		})
	}
}

func TestMessagesRequeuedOneByOneInOrderAreNotOvertaken(t *testing.T) {
	t.Parallel()

	var repaired atomic.Bool

	r := start(t, newPool(t), breakable(func(note) bool { return repaired.Load() }))
	r.send(message("a", "1"), message("a", "2"), message("a", "3"))
	pgtest.Eventually(t, "all are stopped", func() bool { return len(r.stopped()) == 3 })
	repaired.Store(true)

	for id := range int64(3) {
		if out := r.requeueSome(failed.Filter{IDs: []int64{id + 1}}, failed.Pace{}); out.Done != 1 {
			t.Errorf("message %d: %+v", id+1, out)
		}
	}

	if got := r.texts("a"); got != "1 2 3" {
		t.Errorf("applied %q", got)
	}
}

func TestAMessageRequeuedOutOfOrderOvertakesOlderOnes(t *testing.T) {
	t.Parallel()

	var repaired atomic.Bool

	r := start(t, newPool(t), breakable(func(note) bool { return repaired.Load() }))
	last := message("a", "3")
	r.send(message("a", "1"), message("a", "2"), last)
	pgtest.Eventually(t, "all are stopped", func() bool { return len(r.stopped()) == 3 })
	repaired.Store(true)

	if out := r.requeueSome(failed.Filter{IDs: []int64{3}}, failed.Pace{OutOfOrder: true}); out.Done != 1 {
		t.Fatalf("got %+v", out)
	}

	out := r.requeueSome(failed.Filter{}, failed.Pace{})
	if got := refusals(out); got != "1 overtaken by 1 of a, 2 overtaken by 1 of a" || out.Refusals[0].Overtaken.LastIDs[0] != last.ID {
		t.Errorf("got %q, %+v", got, out)
	}
}

// A requeue and a batch that applies a later message with its key may run at the same
// time. One of them waits for the other.
func TestARequeueWaitsForABatchThatOvertakesItsMessage(t *testing.T) {
	t.Parallel()

	applying, proceed := make(chan struct{}), make(chan struct{})

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			switch e.Payload.Text {
			case "1":
				return nil, errBroken
			case "2":
				close(applying)
				<-proceed
			}

			return write(ctx, tx, e)
		})
	})
	r.send(message("a", "1"))
	pgtest.Eventually(t, "the first is stopped", func() bool { return len(r.stopped()) == 1 })
	r.send(message("a", "2"))
	<-applying

	done := make(chan failed.Outcome)

	go func() {
		out, err := r.failed.Requeue(context.Background(), failed.Filter{}, ann, failed.Pace{}, r.router.Check)
		if err != nil {
			t.Error(err)
		}

		done <- out
	}()

	pgtest.Eventually(t, "the requeue waits", pgtest.LockWaits(t, r.pool))
	close(proceed)

	if got := refusals(<-done); got != "1 overtaken by 1 of a" {
		t.Errorf("stays stopped: %q", got)
	}
}

// publishHalfEach waits until each of two replicas publishes half of the keys. While
// shards change hands, messages may be delivered twice.
func publishHalfEach(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	pgtest.Eventually(t, "each replica publishes half of the keys", func() bool {
		return pgtest.Value[bool](t, pool, `
			SELECT count(*) = 2 AND min(n) = 32 FROM (
				SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint::oid AND objsubid = 2
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY pid) AS relays`, postgres.LockShard)
	})
}

// requeueMeanwhile requeues failed messages on all replicas, repeatedly, until do
// returns.
func requeueMeanwhile(t *testing.T, replicas []*rig, do func()) {
	t.Helper()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	var operators sync.WaitGroup

	for _, r := range replicas {
		operators.Go(func() {
			for ctx.Err() == nil {
				if _, err := r.failed.Requeue(t.Context(), failed.Filter{}, ann, failed.Pace{}, r.router.Check); err != nil {
					t.Error(err)
				}
			}
		})
	}

	do()
	cancel()
	operators.Wait()
}

// appliedInOrder returns the number of applied messages with a key. It checks that none
// was applied after a later one.
func (r *rig) appliedInOrder(key string) (applied int) {
	r.t.Helper()

	last := -1

	for text := range strings.FieldsSeq(r.texts(key)) {
		n, err := strconv.Atoi(text)
		if err != nil || n <= last {
			r.t.Fatalf("key %s: %s was applied after %d: %v", key, text, last, err)
		}

		last, applied = n, applied+1
	}

	return applied
}

// On two replicas, messages that fail once are requeued, without Pace.Overtaken, while
// others with their keys arrive. No message is ever applied after a later one with its key.
func TestRequeuesNeverOverwriteWhatLaterMessagesDid(t *testing.T) {
	t.Parallel()

	const keys, notes = 4, 120

	var (
		failedOnce sync.Map
		late       = note{ID: "late", Text: "0"} // always fails once
	)

	pool := newPool(t)
	flaky := breakable(func(n note) bool {
		_, before := failedOnce.LoadOrStore(n, true)

		return before || n != late && rand.IntN(3) > 0
	})
	replicas := []*rig{start(t, pool, flaky, parking(0)), start(t, pool, flaky, parking(0))}
	publishHalfEach(t, pool)

	// This one is overtaken before anybody requeues it.
	replicas[0].send(message(late.ID, late.Text))
	replicas[0].settle()
	failedOnce.Store(note{ID: late.ID, Text: "1"}, true)
	replicas[0].send(message(late.ID, "1"))
	replicas[0].settle()

	requeueMeanwhile(t, replicas, func() {
		for i := range notes {
			for key := range keys {
				replicas[i%2].send(message(fmt.Sprint(key), strconv.Itoa(i)))
			}
		}

		replicas[0].settle()
	})
	replicas[0].settle()

	applied := replicas[0].appliedInOrder(late.ID)
	for key := range keys {
		applied += replicas[0].appliedInOrder(fmt.Sprint(key))
	}

	left := replicas[0].requeueSome(failed.Filter{}, failed.Pace{DryRun: true})
	if applied+left.RefusedBy[event.Overtaken]+left.Done != keys*notes+2 || left.RefusedBy[event.Overtaken] == 0 {
		t.Errorf("%d applied, left %d refused, %d done: %s", applied, left.Refused, left.Done, pgtest.Value[string](t, pool, `
			SELECT string_agg(state || ' ' || coalesce(resolution, '') || ' ' || n, ', ') FROM (SELECT state, resolution, count(*) AS n FROM failed_messages GROUP BY 1, 2) AS s`))
	}

	// Each is reported with the messages that were applied after it.
	for _, refusal := range left.Refusals {
		if o := refusal.Overtaken; o == nil || o.Messages < 1 || len(o.LastIDs) == 0 || o.LastIDs[0] == uuid.Nil || o.LastAt == nil {
			t.Errorf("got %+v", refusal)
		}
	}
}

// A broker may deliver a stopped message again if its acknowledgement was lost. By then
// later messages with its key may have been applied.
func TestAStoppedMessageThatIsDeliveredAgainStaysStopped(t *testing.T) {
	t.Parallel()

	var repaired atomic.Bool

	r := start(t, newPool(t), breakable(func(n note) bool { return repaired.Load() || n.Text != "1" }))
	first := message("a", "1")
	r.send(first, message("a", "2"))
	r.settle()
	repaired.Store(true)
	r.send(first, message("a", "3"))
	r.settle()

	if got, stopped := r.texts("a"), r.stopped(); got != "2 3" || len(stopped) != 1 || stopped[0].MessageID != first.ID {
		t.Errorf("applied %q, stopped %+v", got, stopped)
	}

	if got := refusals(r.requeueSome(failed.Filter{}, failed.Pace{})); got != "1 overtaken by 2 of a" {
		t.Errorf("stays stopped: %q", got)
	}
}
