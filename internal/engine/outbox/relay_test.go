package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// log is a publisher that records messages. refuse can make it fail before or after
// it records a message.
type log struct {
	mu      sync.Mutex
	entries []string
	refuse  func(entry string) (before, after error)
}

func (l *log) Publish(_ string, messages ...*message.Message) error {
	for _, m := range messages {
		entry := m.Metadata[event.HeaderKey] + "=" + string(m.Payload)

		var before, after error
		if l.refuse != nil {
			before, after = l.refuse(entry)
		}

		if before != nil {
			return before
		}

		l.mu.Lock()
		l.entries = append(l.entries, entry)
		l.mu.Unlock()

		if after != nil {
			return after
		}
	}

	return nil
}

func (*log) Close() error { return nil }

// firsts returns the first occurrence of each recorded message.
func (l *log) firsts() []string {
	l.mu.Lock()
	defer l.mu.Unlock()

	var once []string

	for _, entry := range l.entries {
		if !slices.Contains(once, entry) {
			once = append(once, entry)
		}
	}

	return once
}

// relay runs a relay until stop is called.
func relay(tb testing.TB, pool *pgxpool.Pool, publisher message.Publisher) (wake, stop func()) {
	tb.Helper()

	cfg := outbox.DefaultConfig()
	cfg.PollInterval = 20 * time.Millisecond

	return relayWith(tb, pool, publisher, cfg)
}

func relayWith(tb testing.TB, pool *pgxpool.Pool, publisher message.Publisher, cfg outbox.Config) (wake, stop func()) {
	tb.Helper()

	r := outbox.NewRelay(cfg, pool, pgtest.Logger(tb), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(context.Background())

	var running sync.WaitGroup

	running.Go(func() { r.Run(ctx, outbox.Target{Publisher: publisher, Lanes: 8, Run: 4}) })

	return r.Wake, func() {
		cancel()
		running.Wait()
	}
}

func appendMessage(tb testing.TB, pool *pgxpool.Pool, key, text string) {
	tb.Helper()
	appendMessages(tb, pool, event.Message{ID: event.NewID(), Topic: "t", Key: key, Payload: []byte(text)})
}

func appendMessages(tb testing.TB, pool *pgxpool.Pool, messages ...event.Message) {
	tb.Helper()

	err := postgres.InTx(context.Background(), pool, func(tx pgx.Tx) error {
		return outbox.AppendMessages(context.Background(), tx, messages)
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func empty(tb testing.TB, pool *pgxpool.Pool) func() bool {
	tb.Helper()

	return func() bool { return pgtest.Value[int](tb, pool, `SELECT count(*)::int FROM outbox`) == 0 }
}

var errRefused = errors.New("refused")

// refuseOnce refuses the entries with these numbers once: after publishing if the value
// is true, before if it is false.
func refuseOnce(failures map[int]bool) func(entry string) (before, after error) {
	var mu sync.Mutex

	return func(entry string) (before, after error) {
		mu.Lock()
		defer mu.Unlock()

		var n int

		_, _ = fmt.Sscanf(entry[2:], "%d", &n)

		published, fails := failures[n]
		delete(failures, n)

		switch {
		case fails && published:
			return nil, errRefused
		case fails:
			return errRefused, nil
		}

		return nil, nil
	}
}

func TestFirstOccurrencesAreInOrderPerKey(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 25).Draw(rt, "keys")
		restarts := rapid.SliceOfN(rapid.IntRange(0, len(keys)), 0, 3).Draw(rt, "restarts before")
		failures := rapid.MapOfN(rapid.IntRange(0, len(keys)-1), rapid.Bool(), 0, 3).Draw(rt, "failures, after publishing or before")

		published := &log{refuse: refuseOnce(failures)}
		wake, stop := relay(t, pool, published)

		want := map[string][]string{}

		for n, key := range keys {
			if slices.Contains(restarts, n) {
				stop()
				wake, stop = relay(t, pool, published)
			}

			appendMessage(t, pool, key, fmt.Sprint(n))
			wake()

			want[key] = append(want[key], fmt.Sprintf("%s=%d", key, n))
		}

		pgtest.Eventually(t, "the outbox is empty", empty(t, pool))
		stop()

		got := map[string][]string{}
		for _, entry := range published.firsts() {
			got[entry[:1]] = append(got[entry[:1]], entry)
		}

		for key := range want {
			if !slices.Equal(want[key], got[key]) {
				rt.Fatalf("key %s: published %v, expected %v", key, got[key], want[key])
			}
		}
	})
}

func TestNothingIsDeletedBeforeTheConfirmation(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	asked := make(chan struct{}, 100)
	published := &log{refuse: func(string) (error, error) {
		asked <- struct{}{}

		return nil, errRefused
	}}
	wake, stop := relay(t, pool, published)

	appendMessage(t, pool, "a", "1")
	wake()
	<-asked
	<-asked // it is retried
	stop()

	if empty(t, pool)() {
		t.Error("an unconfirmed message was deleted")
	}
}

// refusingA returns a publisher that refuses entries that begin with "a", such as those of
// key a.
func refusingA() *log {
	return &log{refuse: func(entry string) (error, error) {
		if entry[:1] == "a" {
			return errRefused, nil
		}

		return nil, nil
	}}
}

func TestAFailingKeyDoesNotBlockOthers(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	published := refusingA()
	wake, stop := relay(t, pool, published)
	defer stop()

	for n := range 50 {
		appendMessage(t, pool, "a", fmt.Sprint(n))
		appendMessage(t, pool, fmt.Sprint("b", n), "x")
	}

	// Block more messages behind the failing one than the relay reads at once.
	behind := make([]event.Message, outbox.DefaultConfig().BatchSize+100)
	for n := range behind {
		behind[n] = event.Message{ID: event.NewID(), Topic: "t", Key: "a", Payload: []byte("behind")}
	}

	appendMessages(t, pool, behind...)
	pgtest.Eventually(t, "the failing key is read", func() bool { wake(); return len(published.firsts()) == 50 })

	for n := range 50 {
		appendMessage(t, pool, fmt.Sprint("c", n), "x")
	}

	wake()
	pgtest.Eventually(t, "100 other keys are published", func() bool { return len(published.firsts()) == 100 })
}

func TestAScheduledMessageWaitsForItsTime(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	published := &log{}
	wake, stop := relay(t, pool, published)
	defer stop()

	err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, []event.Outgoing{
			{Meta: event.Meta{ID: event.NewID()}, Payload: text("later"), Delay: time.Hour},
			{Meta: event.Meta{ID: event.NewID()}, Payload: text("now")},
		})
	})
	if err != nil {
		t.Fatal(err)
	}

	wake()
	pgtest.Eventually(t, "the other one is published", func() bool { return len(published.firsts()) == 1 })

	if left := pgtest.Value[time.Duration](t, pool, `SELECT available_at - clock_timestamp() FROM outbox WHERE available_at IS NOT NULL`); left < 50*time.Minute || left > time.Hour {
		t.Errorf("it waits for %s", left)
	}

	if _, err := pool.Exec(t.Context(), `UPDATE outbox SET available_at = clock_timestamp() WHERE available_at IS NOT NULL`); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "both are published", func() bool { return len(published.firsts()) == 2 })

	if got := published.firsts(); got[0] != `k="now"` || got[1] != `k="later"` {
		t.Errorf("published %v", got)
	}
}

// text is a JSON string payload.
type text string

func (text) Topic() string   { return "t" }
func (text) Key() string     { return "k" }
func (text) Validate() error { return nil }

func TestReplicasShareTheWorkAndTakeOver(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	one, two := &log{}, &log{}
	_, stopOne := relay(t, pool, one)
	_, stopTwo := relay(t, pool, two)

	defer stopTwo()

	locks := func(where string) int {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted AND a.datname = current_database() `+where)
	}

	pgtest.Eventually(t, "each relay owns half of the shards", func() bool {
		return pgtest.Value[string](t, pool, `SELECT COALESCE(string_agg(n::text, ' '), '') FROM (
			SELECT count(*) AS n FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND a.datname = current_database() GROUP BY pid) AS owners`) == "32 32"
	})

	for n := range 200 {
		appendMessage(t, pool, fmt.Sprint("key", n), "x")
	}

	pgtest.Eventually(t, "the outbox is empty", empty(t, pool))

	if len(one.firsts()) == 0 || len(two.firsts()) == 0 || len(one.firsts())+len(two.firsts()) != 200 {
		t.Errorf("published %d and %d, expected 200 in total", len(one.firsts()), len(two.firsts()))
	}

	pgtest.KillBackends(t, pool)
	stopOne()

	for n := range 200 {
		appendMessage(t, pool, fmt.Sprint("late", n), "x")
	}

	pgtest.Eventually(t, "the survivor publishes everything", empty(t, pool))

	if got := locks(""); got != outbox.Shards {
		t.Errorf("the survivor owns %d shards, expected %d", got, outbox.Shards)
	}
}

func TestShardsChangeHandsWithoutWaitingForThePoll(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	owned := func(want string) func() bool {
		return func() bool {
			return pgtest.Value[string](t, pool, `SELECT COALESCE(string_agg(n::text, ' '), '') FROM (
				SELECT count(*) AS n FROM pg_locks l JOIN pg_stat_activity a USING (pid)
				WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND a.datname = current_database() GROUP BY pid) AS owners`) == want
		}
	}

	cfg := outbox.DefaultConfig()
	cfg.PollInterval = time.Hour

	_, stopOne := relayWith(t, pool, &log{}, cfg)
	pgtest.Eventually(t, "the first relay owns all shards", owned("64"))

	_, stopTwo := relayWith(t, pool, &log{}, cfg)
	defer stopTwo()

	pgtest.Eventually(t, "each relay owns half of the shards", owned("32 32"))
	stopOne()
	pgtest.Eventually(t, "the second relay owns all shards", owned("64"))
}

// large returns n messages of 1 MiB with different keys.
func large(n int) []event.Message {
	messages := make([]event.Message, n)
	for i := range messages {
		messages[i] = event.Message{ID: event.NewID(), Topic: "t", Key: fmt.Sprint("a", i), Payload: make([]byte, 1<<20)}
	}

	return messages
}

// crowd is a publisher that takes one message for each value sent on let.
type crowd struct {
	let chan struct{}

	mu            sync.Mutex
	waiting, most int
}

func (c *crowd) Publish(string, ...*message.Message) error {
	c.add(1)
	<-c.let
	c.add(-1)

	return nil
}

func (*crowd) Close() error { return nil }

// add changes the number of waiting messages by n. It returns the new number and the
// highest one seen.
func (c *crowd) add(n int) (waiting, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.waiting += n
	c.most = max(c.most, c.waiting)

	return c.waiting, c.most
}

func TestLargeMessagesAreReadAFewAtATime(t *testing.T) {
	t.Parallel()

	const all, few = 100, 32

	pool := pgtest.New(t)
	publisher := &crowd{let: make(chan struct{})}

	appendMessages(t, pool, large(all)...)

	r := outbox.NewRelay(outbox.DefaultConfig(), pool, pgtest.Logger(t), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())

	var running sync.WaitGroup

	running.Go(func() { r.Run(ctx, outbox.Target{Publisher: publisher, Lanes: all}) })

	for n := range all {
		pgtest.Eventually(t, "the relay publishes many concurrently", func() bool {
			waiting, _ := publisher.add(0)

			return waiting >= min(few/2, all-n)
		})

		publisher.let <- struct{}{}
	}

	pgtest.Eventually(t, "the outbox is empty", empty(t, pool))
	cancel()
	running.Wait()

	if _, most := publisher.add(0); most > few+1 {
		t.Errorf("the relay held %d messages, expected at most %d", most, few+1)
	}
}

func TestLargeMessagesThatFailTakeNoSpace(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	published := refusingA()
	wake, stop := relay(t, pool, published)
	defer stop()

	appendMessages(t, pool, large(100)...)
	appendMessage(t, pool, "b", "x")
	wake()
	pgtest.Eventually(t, "the small message is published", func() bool { return len(published.firsts()) == 1 })
}

// TestARelayThatStopsCompletesItsStatement stops a relay while the deletion of a message
// that it has published waits for a lock. The message is deleted, and not published again.
func TestARelayThatStopsCompletesItsStatement(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	appendMessage(t, pool, "a", "1")

	lock, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if _, err := lock.Exec(t.Context(), `SELECT FROM outbox FOR UPDATE`); err != nil {
		t.Fatal(err)
	}

	_, stop := relay(t, pool, &log{})

	pgtest.Eventually(t, "the deletion waits", func() bool {
		return pgtest.Value[int](t, pool, `
			SELECT count(*)::int FROM pg_stat_activity
			WHERE datname = current_database() AND starts_with(application_name, $1) AND wait_event_type = 'Lock'`, outbox.SessionName) == 1
	})

	ended := make(chan struct{})

	go func() {
		stop()
		close(ended)
	}()

	select {
	case <-ended:
		t.Error("the relay did not wait for its statement")
	case <-time.After(500 * time.Millisecond):
	}

	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	<-ended

	if !empty(t, pool)() {
		t.Error("the published message is still in the outbox")
	}
}
