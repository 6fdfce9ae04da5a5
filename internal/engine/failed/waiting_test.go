package failed_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func newStore(t *testing.T) (*failed.Store, *pgxpool.Pool) {
	t.Helper()

	pool := pgtest.New(t)

	return failed.NewStore(failed.DefaultConfig(), pool), pool
}

// broken returns a message with key k that has failed once.
func broken() failed.Entry {
	return failed.Entry{
		Consumer: "writer", Topic: "notes", Key: "k", MessageID: event.NewID(), Headers: event.Headers{},
		Payload: []byte(`{}`), Attempts: 1, Reason: event.ReasonFailed, Error: "it is broken",
	}
}

// park parks a message and returns it with its ID.
func park(t *testing.T, s *failed.Store, m failed.Entry, wait time.Duration) failed.Entry {
	t.Helper()

	if err := s.Park(t.Context(), m, wait); err != nil {
		t.Fatal(err)
	}

	head, ok, err := s.Head(t.Context(), failed.Key{Consumer: m.Consumer, Key: m.Key}, 0, nil)
	if err != nil || !ok {
		t.Fatalf("%t, %v", ok, err)
	}

	return head.Entry
}

func TestAMessageIsParkedWhileItsKeyIsBeingFreed(t *testing.T) {
	t.Parallel()

	s, pool := newStore(t)
	first := park(t, s, broken(), 0)

	// Do what Finish does, step by step.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()

	if _, err := tx.Exec(t.Context(), `SELECT FROM failed_keys WHERE key = 'k' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}

	second, done := broken(), make(chan error, 1)
	go func() { done <- s.Park(t.Context(), second, time.Hour) }()

	pgtest.Eventually(t, "the second message waits for the key", pgtest.LockWaits(t, pool))

	for _, sql := range []string{`DELETE FROM failed_messages`, `DELETE FROM failed_keys`} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	if err := errors.Join(tx.Commit(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}

	list, err := s.WaitingKeys(t.Context(), failed.KeyFilter{}, 10)
	if err != nil || len(list) != 1 || list[0].MessageID != second.MessageID || list[0].MessageID == first.MessageID || time.Until(list[0].DueAt) < 50*time.Minute {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAnAttemptAtASkippedMessageBlocksNoOther(t *testing.T) {
	t.Parallel()

	s, _ := newStore(t)
	first := park(t, s, broken(), 0)
	park(t, s, broken(), 0) // blocked by first

	if _, err := s.Skip(t.Context(), first.ID, activity.Actor{Who: "test"}); err != nil {
		t.Fatal(err)
	}

	first.Attempts++

	if err := s.Park(t.Context(), first, time.Hour); err != nil { // the attempt was running during the skip
		t.Fatal(err)
	}

	list, err := s.WaitingKeys(t.Context(), failed.KeyFilter{}, 10)
	if err != nil || len(list) != 1 || list[0].ID == first.ID || time.Until(list[0].DueAt) > time.Minute {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAMessageThatIsAppliedWhileItIsSkippedIsResolved(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	first := park(t, r.Store, broken(), 0)

	if _, err := r.Skip(t.Context(), first.ID, alice); err != nil {
		t.Fatal(err)
	}

	if err := r.Finish(t.Context(), first); err != nil { // the attempt was running during the skip
		t.Fatal(err)
	}

	if got := r.get(first.ID); got.Resolution != failed.Applied {
		t.Errorf("the message is %s", got.State)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_keys`); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

func TestARequeuedMessageIsDueNowAndFirstOfItsKey(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.add(entry("k", "1")) // stopped

	waiting := broken()
	waiting.Payload = body("k", "2")

	if err := r.Park(t.Context(), waiting, time.Hour); err != nil {
		t.Fatal(err)
	}

	second := r.waiting()[0].Entry
	r.requeue(failed.Filter{IDs: []int64{1}})

	// A running attempt at the second message postpones only that message.
	second.Attempts++
	if err := r.Park(t.Context(), second, time.Hour); err != nil {
		t.Fatal(err)
	}

	if got := r.apply(); len(got) != 2 || got[0].Entry.ID != 1 || got[1].Entry.ID != second.ID {
		t.Errorf("applied %+v", got)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages WHERE id <> 1`); n != 0 {
		t.Errorf("a message that was never stopped is still stored")
	}
}

func TestALeaseExcludesOtherProcessesUntilItExpires(t *testing.T) {
	t.Parallel()

	s, pool := newStore(t)
	park(t, s, broken(), 0)

	lease := func() []failed.Lease {
		t.Helper()

		list, err := s.Lease(t.Context(), map[string]int{"writer": 9}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}

		return list
	}
	left := func() time.Duration {
		return pgtest.Value[time.Duration](t, pool, `SELECT coalesce(leased_until - clock_timestamp(), interval '0') FROM failed_keys`)
	}

	first := lease()
	if len(first) != 1 || first[0].Key != (failed.Key{Consumer: "writer", Key: "k"}) {
		t.Fatalf("leased %v", first)
	}

	// An operator makes the key due during the attempt.
	if out, err := s.RetryNow(t.Context(), failed.KeyFilter{}, alice); out.Due != 1 || err != nil {
		t.Fatal(out, err)
	}

	if again := lease(); len(again) != 0 {
		t.Errorf("leased %v although another process has the lease", again)
	}

	if err := s.Renew(t.Context(), first, 2*time.Hour); err != nil || left() < 110*time.Minute {
		t.Errorf("the renewed lease lasts %s, %v", left(), err)
	}

	if err := s.Renew(t.Context(), first, 0); err != nil {
		t.Fatal(err)
	}

	second := lease()
	if len(second) != 1 {
		t.Fatalf("leased %v after the lease expired", second)
	}

	// The process whose lease expired has no effect on its successor's lease.
	if err := errors.Join(s.Renew(t.Context(), first, 0), s.EndLease(t.Context(), first[0], 0)); err != nil || left() < 50*time.Minute {
		t.Errorf("the lease lasts %s, %v", left(), err)
	}

	if err := s.EndLease(t.Context(), second[0], 0); err != nil || left() != 0 || len(lease()) != 1 {
		t.Errorf("the lease did not end: %s, %v", left(), err)
	}
}

func TestAKeyThatBecomesDueDuringAnAttemptIsTriedAgainRightAfterIt(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		during func(s *failed.Store) error
		due    bool
	}{
		"nothing happens":     {func(*failed.Store) error { return nil }, false},
		"an operator retries": {func(s *failed.Store) error { _, err := s.RetryNow(t.Context(), failed.KeyFilter{}, alice); return err }, true},
		"the awaited arrives": {func(s *failed.Store) error { _, err := s.Wake(t.Context(), "notes", []string{"k"}); return err }, true},
	} {
		for end, finish := range map[string]func(s *failed.Store, l failed.Lease, e failed.Entry) error{
			"is parked again": func(s *failed.Store, l failed.Lease, e failed.Entry) error {
				return errors.Join(s.Park(t.Context(), early(e), time.Hour, "notes"), s.EndLease(t.Context(), l, 0))
			},
			"is returned": func(s *failed.Store, l failed.Lease, _ failed.Entry) error {
				return s.EndLease(t.Context(), l, time.Hour)
			},
		} {
			t.Run(name+" and it "+end, func(t *testing.T) {
				t.Parallel()

				s, _ := newStore(t)
				if err := s.Park(t.Context(), early(broken()), 0, "notes"); err != nil {
					t.Fatal(err)
				}

				leases, err := s.Lease(t.Context(), map[string]int{"writer": 1}, time.Hour)
				if err != nil || len(leases) != 1 {
					t.Fatal(leases, err)
				}

				head, _, err := s.Head(t.Context(), leases[0].Key, 0, nil)
				if err := errors.Join(err, c.during(s), finish(s, leases[0], head.Entry)); err != nil {
					t.Fatal(err)
				}

				again, err := s.Lease(t.Context(), map[string]int{"writer": 1}, time.Hour)
				if err != nil || (len(again) == 1) != c.due {
					t.Errorf("leased %v, %v", again, err)
				}
			})
		}
	}
}

func TestARequeuedMessageDoesNotMakeAnEarlierOneOfItsKeyDue(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	first := broken()
	if err := r.Park(t.Context(), first, time.Hour); err != nil {
		t.Fatal(err)
	}

	r.requeue(failed.Filter{IDs: []int64{r.add(entry("k", "2"))}})

	list, err := r.WaitingKeys(t.Context(), failed.KeyFilter{}, 10)
	if err != nil || len(list) != 1 || list[0].MessageID != first.MessageID || list[0].Blocked != 1 || time.Until(list[0].DueAt) < 50*time.Minute {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAStoppedMessageIsNotParked(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("a", "1")
	id := r.add(e)

	if err := r.Park(t.Context(), e, time.Hour); err != nil {
		t.Fatal(err)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_keys WHERE due_at IS NOT NULL`); n != 0 || r.get(id).State != failed.Stopped {
		t.Errorf("%d keys are waiting; %+v", n, r.get(id))
	}
}

func TestAKeyTooLongForAnIndexCanWait(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	var key strings.Builder // must not compress well
	for key.Len() < 20_000 {
		key.WriteString(event.NewID().String())
	}

	e := entry(key.String(), "1")
	r.add(e)
	r.requeue(failed.Filter{})

	if blocked, err := r.BlockAlone(t.Context(), entry(key.String(), "2")); err != nil || !blocked {
		t.Fatalf("blocked %t, %v", blocked, err)
	}

	if got := r.apply(); len(got) != 2 || got[0].Entry.MessageID != e.MessageID || got[0].Entry.Key != key.String() {
		t.Errorf("applied %+v", got)
	}
}

func TestAWaitingMessageIsStoppedInItsRow(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	first := park(t, r.Store, broken(), time.Hour)
	second := park(t, r.Store, broken(), time.Hour)

	if second.ID != first.ID {
		t.Fatalf("the head is %d, expected %d", second.ID, first.ID)
	}

	// The message was delivered twice, and the other delivery is rejected.
	rejected := first
	rejected.ID, rejected.Reason, rejected.Error = 0, event.ReasonInvalid, "text: is missing"
	r.add(rejected)

	if got := r.get(first.ID); got.State != failed.Stopped || got.Reason != event.ReasonInvalid || r.history(first.ID) != "" {
		t.Errorf("got %+v, %s", got, r.history(first.ID))
	}

	if got := r.waiting(); len(got) != 1 || got[0].Entry.ID == first.ID {
		t.Errorf("waiting %+v", got)
	}
}

func TestRequeuedMessagesAreTriedInOrderOfArrivalAcrossConsumers(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	running := []string{"reader", "writer"}
	first, second := entry("a", "1"), entry("a", "2")
	second.Consumer = "reader"
	r.add(first, second)

	anything := func(string, []byte) (string, error) { return "a", nil }
	if o, err := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{}, anything); err != nil || o.Done != 2 {
		t.Fatalf("got %+v, %v", o, err)
	}

	behind := func(consumer string, running []string) bool {
		head, ok, err := r.Head(t.Context(), failed.Key{Consumer: consumer, Key: "a"}, 0, running)
		if err != nil || !ok {
			t.Fatalf("%t, %v", ok, err)
		}

		return head.Behind
	}

	if behind("writer", running) || !behind("reader", running) {
		t.Error("the second message is tried before the first")
	}

	if behind("reader", []string{"reader"}) {
		t.Error("the second message waits for a paused consumer")
	}

	tried := r.get(1)
	tried.Attempts++

	if err := r.Park(t.Context(), tried, time.Hour); err != nil {
		t.Fatal(err)
	}

	if behind("reader", running) {
		t.Error("the second message waits for the next attempt at the first")
	}
}

func TestFreeingAKeyUsesAnIndex(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for _, sql := range []string{
		`INSERT INTO failed_messages (state, consumer, topic, key, message_id, fingerprint, origin, headers, payload, deliveries, reason)
		 SELECT 'stopped', 'writer', 'notes', 'key-' || n, gen_random_uuid(), n, 'test', '{}', '', 1, 'handler_error' FROM generate_series(1, 10000) AS n`,
		`ANALYZE failed_messages`,
	} {
		if _, err := r.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	// This is the foreign key's query when a key's row is deleted.
	rows, err := r.pool.Query(t.Context(), `
		EXPLAIN SELECT 1 FROM ONLY failed_messages x WHERE 'writer' = consumer AND 'k' = failed_key FOR KEY SHARE OF x`)
	if err != nil {
		t.Fatal(err)
	}

	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || !strings.Contains(strings.Join(plan, "\n"), "failed_messages_of_key") {
		t.Errorf("%v\n%s", err, strings.Join(plan, "\n"))
	}
}

func TestAnAttemptAtAnEditedMessageHasNoEffect(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	m := broken()
	m.Payload = body("k", "1")
	tried := park(t, r.Store, m, 0)

	// While an attempt is running, an operator skips, edits and requeues the message.
	if _, err := r.Skip(t.Context(), tried.ID, alice); err != nil {
		t.Fatal(err)
	}

	if _, err := r.Edit(t.Context(), tried.ID, failed.Edit{Payload: body("k", "2")}, alice, check); err != nil {
		t.Fatal(err)
	}

	r.requeue(failed.Filter{})

	failedAgain := tried
	failedAgain.Attempts++

	if err := errors.Join(
		r.Finish(t.Context(), tried), r.Park(t.Context(), failedAgain, time.Hour), r.Stop(t.Context(), failedAgain),
	); err != nil {
		t.Fatal(err)
	}

	if got := r.get(tried.ID); got.State != failed.Waiting || got.Attempts != 1 {
		t.Errorf("the message is %s after %d attempts", got.State, got.Attempts)
	}

	if got := r.apply(); len(got) != 1 || got[0].Payload != string(body("k", "2")) {
		t.Errorf("applied %+v", got)
	}
}

func TestAFailedAttemptDoesNotStopAMessageAppliedByAnotherReplica(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	r.requeue(failed.Filter{IDs: []int64{r.add(entry("k", "1"))}})

	tried := r.get(1)
	r.apply()

	tried.Attempts++
	if err := r.Stop(t.Context(), tried); err != nil {
		t.Fatal(err)
	}

	if got := r.get(1); got.State != failed.Resolved || got.Resolution != failed.Applied {
		t.Errorf("the message is %s", got.State)
	}
}

func TestRequeueingAMessageWhileItIsDeliveredAgainKeepsItWaiting(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	e := entry("k", "1")
	r.add(e)

	// Do what Requeue does, step by step.
	tx, err := r.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()

	if _, err := tx.Exec(t.Context(), `SELECT FROM failed_messages FOR UPDATE`); err != nil {
		t.Fatal(err)
	}

	done := make(chan error, 1)
	go func() { done <- r.Stop(t.Context(), e) }() // the broker redelivered it

	pgtest.Eventually(t, "the second delivery waits for the row", pgtest.LockWaits(t, r.pool))

	for _, sql := range []string{
		`UPDATE failed_keys SET due_at = now()`,
		`UPDATE failed_messages SET state = 'waiting', failed_key = 'k', tried_at = NULL, revision = revision + 1`,
	} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	if err := errors.Join(tx.Commit(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_keys WHERE due_at IS NOT NULL`); n != 1 || r.get(1).State != failed.Waiting {
		t.Errorf("%d keys are waiting, but the message is %s", n, r.get(1).State)
	}
}

func TestOperatorsAndAttemptsDoNotDeadlock(t *testing.T) {
	t.Parallel()

	const keys = 6

	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()

	for i := range 10 * keys {
		r.add(entry(fmt.Sprint("key-", i%keys), fmt.Sprint(i)))
	}

	var group errgroup.Group

	repeat := func(do func() error) {
		group.Go(func() error {
			for ctx.Err() == nil {
				if err := do(); err != nil {
					return err
				}
			}

			return nil
		})
	}

	for range 2 {
		repeat(func() error {
			_, err := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{OutOfOrder: true}, check)

			return err
		})
		repeat(func() error {
			_, err := r.RetryNow(t.Context(), failed.KeyFilter{}, alice)

			return err
		})
		repeat(r.stopHeads)
	}

	repeat(r.eraseTwoKeys)
	repeat(func() error { return r.Stop(t.Context(), entry("key-0", "more")) })
	repeat(func() error { return r.Park(t.Context(), entry("key-1", "more"), time.Millisecond) })

	if err := group.Wait(); err != nil {
		t.Error(err)
	}

	if n := pgtest.Value[int](t, r.pool, `
		SELECT count(*)::int FROM failed_keys k
		LEFT JOIN (SELECT consumer, failed_key AS key, bool_or(state = 'waiting') AS waits FROM failed_messages GROUP BY 1, 2) AS m USING (consumer, key)
		WHERE m.waits IS NULL OR m.waits <> (k.due_at IS NOT NULL)`); n != 0 {
		t.Errorf("%d keys have no failed message, or are due without a waiting one, or the other way round", n)
	}
}

// stopHeads imitates a retry loop whose attempts all fail: it leases due keys and stops
// the first message of each.
func (r rig) stopHeads() error {
	leased, err := r.Lease(r.t.Context(), map[string]int{"writer": 3}, time.Millisecond)

	for _, l := range leased {
		e, ok, headErr := r.Head(r.t.Context(), l.Key, 0, nil)
		if ok {
			e.Attempts++
			headErr = r.Stop(r.t.Context(), e.Entry)
		}

		err = errors.Join(err, headErr)
	}

	return err
}

// eraseTwoKeys erases the messages with key-0 and the messages that mention key-1.
func (r rig) eraseTwoKeys() error {
	about := func(key string, payload []byte) bool {
		return key == "key-0" || strings.Contains(string(payload), "key-1")
	}

	return postgres.InTx(r.t.Context(), r.pool, func(tx pgx.Tx) error {
		_, err := failed.Erase(r.t.Context(), tx, failed.Erasing{Subject: "key-0", Topics: []string{"notes"}, About: about})

		return err
	})
}

// early returns e as a message that awaits another one.
func early(e failed.Entry) failed.Entry {
	e.Reason, e.Error = event.ReasonEarly, "there is no user yet; awaiting users"

	return e
}

// A message's wait for another one begins with the first attempt that finds the other one
// missing. The wait continues while the message fails for other reasons, and restarts
// after a requeue.
func TestTheTimeThatAMessageAwaitsAnotherOne(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	message := broken()
	message.Payload = body("k", "1")
	head := park(t, r.Store, message, 0)

	age := func(sql string) {
		t.Helper()

		if _, err := r.pool.Exec(t.Context(), `UPDATE failed_messages SET `+sql); err != nil {
			t.Fatal(err)
		}
	}

	expect := func(when string, from, to time.Duration) {
		t.Helper()

		h, ok, err := r.Head(t.Context(), failed.Key{Consumer: "writer", Key: "k"}, 0, nil)
		if err != nil || !ok || h.Awaited < from || h.Awaited > to {
			t.Errorf("%s, it has awaited another message for %s, expected %s to %s (%t, %v)", when, h.Awaited, from, to, ok, err)
		}

		head = h.Entry
	}

	again := func(e failed.Entry) {
		t.Helper()

		if err := r.Park(t.Context(), e, time.Minute, "users"); err != nil {
			t.Fatal(err)
		}
	}

	age(`first_at = first_at - interval '1 day'`)
	expect("after a day of other failures", 0, 0)
	again(early(head))
	expect("after the first attempt that missed it", 0, time.Minute)
	age(`awaits_since = awaits_since - interval '1 hour'`)
	again(early(head))
	expect("after the next one", time.Hour, 2*time.Hour)

	head.Reason = event.ReasonFailed
	again(head)
	expect("after another failure", time.Hour, 2*time.Hour)

	if err := r.Stop(t.Context(), head); err != nil {
		t.Fatal(err)
	}

	r.requeue(failed.Filter{})
	expect("after a requeue", 0, 0)
}

func TestOnlyMessagesThatMayBeAwaitedAreTriedAheadOfTheFirst(t *testing.T) {
	t.Parallel()

	s, _ := newStore(t)
	first := park(t, s, early(broken()), time.Minute)

	for range 2 {
		if blocked, err := s.BlockAlone(t.Context(), failed.Entry{
			Consumer: "writer", Topic: "notes", Key: "k", MessageID: event.NewID(), Headers: event.Headers{}, Payload: []byte(`{}`),
		}); err != nil || !blocked {
			t.Fatal(blocked, err)
		}
	}

	behind := func(wants int64) failed.Entry {
		t.Helper()

		h, ok, err := s.Head(t.Context(), failed.Key{Consumer: "writer", Key: "k"}, first.ID, nil)
		if err != nil || ok != (wants != 0) || h.ID != wants {
			t.Errorf("message %d is tried, expected %d: %v", h.ID, wants, err)
		}

		return h.Entry
	}

	tried := func(e failed.Entry) {
		t.Helper()

		if err := s.Park(t.Context(), e, time.Minute); err != nil {
			t.Fatal(err)
		}
	}

	second := behind(first.ID + 1)
	tried(early(second))

	third := behind(first.ID + 2)
	third.Attempts, third.Reason, third.Error = 1, event.ReasonFailed, "it is broken"
	tried(third)

	third = behind(first.ID + 2) // others may await it, and it may succeed next time
	tried(early(third))
	behind(0)
}

// stopAndAwait stores a stopped message with key "k" for each of two consumers. For the
// first consumer, another message with the key is waiting and awaits one on "notes".
func stopAndAwait(r rig) {
	r.t.Helper()

	awaiting, stopped := entry("k", "1"), entry("k", "2")
	awaiting.Consumer, stopped.Consumer = "reader", "reader"
	awaiting.Topic = "readings"

	if err := r.Park(r.t.Context(), awaiting, time.Hour, "notes"); err != nil {
		r.t.Fatal(err)
	}

	r.add(stopped, entry("k", "3"))
}

// A batch that blocks a message holds its key. A requeue that holds an earlier key waits
// for the batch, even if the earlier key awaits that message.
func TestARequeueAndABatchThatBlocksAMessageDoNotDeadlock(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	stopAndAwait(r)

	var group errgroup.Group

	err := postgres.InTx(t.Context(), r.pool, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		failed.QueueKeys(batch, "writer", []string{"k"})

		if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
			return err
		}

		group.Go(func() error {
			anything := func(string, []byte) (string, error) { return "k", nil }
			out, err := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{OutOfOrder: true}, anything)

			if out.Done != 2 {
				err = errors.Join(err, fmt.Errorf("requeued %d messages, expected 2", out.Done))
			}

			return err
		})
		pgtest.Eventually(t, "the requeue waits for the batch", pgtest.LockWaits(t, r.pool))

		return r.Block(t.Context(), tx, []failed.Entry{entry("k", "4")})
	})
	if err := errors.Join(err, group.Wait()); err != nil {
		t.Error(err)
	}
}

func TestOperatorsAndWakesDoNotDeadlock(t *testing.T) {
	t.Parallel()

	const keys = 50

	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()

	var names []string

	for i := range keys {
		key := fmt.Sprint("key-", keys+10-i) // their rows are not in key order
		names = append(names, key)

		if err := r.Park(t.Context(), entry(key, "1"), time.Hour, "users"); err != nil {
			t.Fatal(err)
		}
	}

	var group errgroup.Group

	wake := func() error {
		_, err := r.Wake(t.Context(), "users", names)

		return err
	}
	retry := func() error {
		_, err := r.RetryNow(t.Context(), failed.KeyFilter{}, alice)

		return err
	}

	for _, do := range []func() error{wake, retry} {
		group.Go(func() error {
			for ctx.Err() == nil {
				if err := do(); err != nil {
					return err
				}
			}

			return nil
		})
	}

	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// Postgres aborts one of two transactions that wait for each other. The operator's
// transaction runs again and loses nothing.
func TestARequeueThatCollidesRunsAgain(t *testing.T) {
	t.Parallel()

	r := newRig(t)
	id := r.add(entry("k", "1"))

	var group errgroup.Group

	err := postgres.InTx(t.Context(), r.pool, func(tx pgx.Tx) error {
		// Only the other transaction looks for a deadlock.
		_, err := tx.Exec(t.Context(), `SET LOCAL deadlock_timeout = '1min'`)
		if err != nil {
			return err
		}

		if _, err := tx.Exec(t.Context(), `SELECT FROM failed_keys FOR UPDATE`); err != nil {
			return err
		}

		group.Go(func() error {
			out, err := r.Requeue(t.Context(), failed.Filter{}, alice, failed.Pace{}, check)

			if out.Done != 1 || len(out.Refusals) != 0 {
				err = errors.Join(err, fmt.Errorf("got %+v", out))
			}

			return err
		})
		pgtest.Eventually(t, "the requeue waits", pgtest.LockWaits(t, r.pool))

		_, err = tx.Exec(t.Context(), `SELECT FROM failed_messages WHERE id = $1 FOR UPDATE`, id)

		return err
	})
	if err := errors.Join(err, group.Wait()); err != nil {
		t.Error(err)
	}
}

func TestAFreedKeyAwaitsNothing(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	if err := r.Park(t.Context(), entry("k", "1"), time.Hour, "users"); err != nil {
		t.Fatal(err)
	}

	e := r.waiting()[0].Entry
	e.Reason, e.Error = event.ReasonInvalid, "text: is missing"
	r.add(e)
	r.requeue(failed.Filter{})

	if n, err := r.Wake(t.Context(), "users", []string{"k"}); err != nil || n != 0 {
		t.Errorf("%d keys await a message, %v", n, err)
	}
}

func TestKeysWhoseMessagesAreStoppedAreNotCountedAsWaiting(t *testing.T) {
	t.Parallel()

	r := newRig(t)

	for _, key := range []string{"stops", "waits"} {
		if err := r.Park(t.Context(), entry(key, "1"), time.Hour); err != nil {
			t.Fatal(err)
		}
	}

	if _, err := r.Skip(t.Context(), r.waiting()[0].Entry.ID, activity.Actor{Who: "ada"}); err != nil {
		t.Fatal(err)
	}

	for filter, want := range map[failed.KeyFilter]int{{}: 1, {Key: "stops"}: 0, {Key: "waits"}: 1} {
		if n, err := r.CountKeys(t.Context(), filter); err != nil || n != want {
			t.Errorf("%+v: counted %d keys, %v; expected %d", filter, n, err, want)
		}
	}
}

// The service counts keys every second, however many messages wait for another system.
func TestCountingLooksAtABoundedNumberOfKeys(t *testing.T) {
	t.Parallel()

	s, pool := newStore(t)

	_, err := pool.Exec(t.Context(), `
		INSERT INTO failed_keys (consumer, key, due_at) SELECT 'writer', n::text, now() FROM generate_series(1, 10100) AS n;
		INSERT INTO failed_messages (state, consumer, topic, message_id, fingerprint, origin, key, failed_key, headers, payload, attempts, reason, error, cause, group_id)
		SELECT 'waiting', 'writer', 'notes', gen_random_uuid(), 0, '', n::text, n || '', '{}', '', 1, 'pending', '', '', '' FROM generate_series(1, 10100) AS n;
		ANALYZE failed_keys, failed_messages`)
	if err != nil {
		t.Fatal(err)
	}

	scans := func() int {
		return pgtest.Value[int](t, pool, `SELECT pg_stat_get_numscans('failed_messages_of_key'::regclass)`)
	}

	before := scans()

	if keys, _, err := s.Count(t.Context()); err != nil || keys != 0 {
		t.Errorf("counted %d keys that do not wait for a decision, %v", keys, err)
	}

	pgtest.Eventually(t, "the scans are reported", func() bool {
		pgtest.Value[any](t, pool, `SELECT pg_stat_force_next_flush()::text`)

		return scans() > before
	})

	if n := scans() - before; n > postgres.MaxCount {
		t.Errorf("looked for the messages of %d keys", n)
	}
}
