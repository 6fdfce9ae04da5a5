package consumer_test

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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// parking makes failed messages wait briefly, for the given number of attempts.
func parking(attempts int) func(*consumer.Config) {
	return func(c *consumer.Config) {
		c.Retries, c.ParkInterval, c.ParkMaxInterval, c.ParkAttempts = 0, 20*time.Millisecond, 50*time.Millisecond, attempts
	}
}

var errBroken = errors.New("it is broken")

// breakable writes a note if works returns true for it, and fails otherwise.
func breakable(works func(note) bool) func(*consumer.Router) {
	return func(router *consumer.Router) {
		consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			if !works(e.Payload) {
				return nil, errBroken
			}

			return write(ctx, tx, e)
		})
	}
}

func (r *rig) waiting(key string) (list []failed.WaitingEntry) {
	r.t.Helper()

	list, err := r.failed.WaitingKeys(context.Background(), failed.KeyFilter{Key: key}, 1000)
	if err != nil {
		r.t.Fatal(err)
	}

	return list
}

func TestAFailedMessageBlocksOnlyLaterMessagesOfItsKey(t *testing.T) {
	t.Parallel()

	var repaired atomic.Bool

	r := start(t, newPool(t), breakable(func(n note) bool { return n.Text != "1" || repaired.Load() }), parking(1000))
	r.send(message("a", "1"), message("a", "2"), message("a", "3"), message("b", "x"))

	pgtest.Eventually(t, "the later messages of the key are blocked", func() bool {
		list := r.waiting("a")

		return len(list) == 1 && list[0].Blocked == 2 && list[0].Attempts > 2 && list[0].Error == errBroken.Error()
	})

	if got := r.texts("b"); got != "x" {
		t.Errorf("the other key got %q", got)
	}

	r.send(message("a", "4"))
	pgtest.Eventually(t, "a new message of the key is blocked too", func() bool { return r.waiting("a")[0].Blocked == 3 })
	repaired.Store(true)
	r.settle()

	if got := r.texts("a"); got != "1 2 3 4" || len(r.stopped()) != 0 {
		t.Errorf("applied %q, stopped %v", got, r.stopped())
	}
}

func TestAttemptsSurviveARestartAndTheLastUnblocksOthers(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	broken := breakable(func(n note) bool { return n.Text != "1" })
	slow := func(c *consumer.Config) {
		c.Retries, c.ParkInterval, c.ParkMaxInterval, c.ParkAttempts = 0, time.Hour, time.Hour, 3
	}

	first := start(t, pool, broken, slow)
	first.send(message("a", "1"), message("a", "2"))
	pgtest.Eventually(t, "both wait", func() bool { list := first.waiting("a"); return len(list) == 1 && list[0].Blocked == 1 })
	first.stop()

	second := start(t, pool, broken, slow)

	for attempts := 1; attempts <= 3; attempts++ {
		pgtest.Eventually(t, "an attempt has failed", func() bool { list := second.waiting("a"); return list[0].Attempts == attempts })

		if out, err := second.failed.RetryNow(t.Context(), failed.KeyFilter{Key: "a"}, activity.Actor{Who: "test", Why: "to see"}); out.Due != 1 || out.Messages != 2 || err != nil {
			t.Fatalf("made due: %+v, %v", out, err)
		}
	}

	second.settle()

	entries := second.stopped()
	if len(entries) != 1 || entries[0].Error != "gave up after 4 attempts: it is broken" || entries[0].Reason != event.ReasonFailed {
		t.Errorf("stopped %+v", entries)
	}

	if got := second.texts("a"); got != "2" {
		t.Errorf("applied %q", got)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM operator_actions WHERE action = 'retried' AND who = 'test' AND subject = 'writer a'`); n != 3 {
		t.Errorf("%d actions are recorded, expected 3", n)
	}
}

func TestARejectionDoesNotBlockItsKey(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", write) }, parking(1000))
	r.send(message("a", "1"), message("a", ""), message("a", "3"))
	r.settle()

	if got := r.texts("a"); got != "1 3" || len(r.stopped()) != 1 {
		t.Errorf("applied %q, stopped %v", got, r.stopped())
	}
}

func TestALeaseIsRenewedDuringALongAttempt(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	trying, proceed := make(chan struct{}, 1), make(chan struct{})
	release := sync.OnceFunc(func() { close(proceed) })

	r := start(t, pool, breakable(func(note) bool {
		select {
		case trying <- struct{}{}: // the first attempt, before the message waits
			return false
		default:
			<-proceed

			return true
		}
	}), parking(1000))
	t.Cleanup(release)
	r.send(message("a", "1"))

	type lease struct{ since, until time.Time }

	current := func() (l lease, ok bool) {
		err := pool.QueryRow(t.Context(), `SELECT leased_at, leased_until FROM failed_keys WHERE leased_at IS NOT NULL`).Scan(&l.since, &l.until)

		return l, err == nil
	}

	var first lease

	pgtest.Eventually(t, "the key is leased", func() (ok bool) { first, ok = current(); return ok })
	pgtest.Eventually(t, "the lease is renewed", func() bool {
		l, ok := current()
		if !ok || !l.since.Equal(first.since) {
			t.Fatalf("the lease is %v, expected that of %s", l, first.since)
		}

		return l.until.After(first.until)
	})
	release()
	r.settle()

	if got := r.texts("a"); got != "1" {
		t.Errorf("applied %q", got)
	}
}

func TestAMessageThatIsBeingTriedIsNotTriedASecondTimeAtTheSameTime(t *testing.T) {
	t.Parallel()

	var attempts, others, concurrent atomic.Int32

	trying, proceed := make(chan struct{}, 100), make(chan struct{})
	release := sync.OnceFunc(func() { close(proceed) })

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "other", func(context.Context, pgx.Tx, event.Event[other]) ([]event.Outgoing, error) {
			if others.Add(1) == 1 {
				return nil, errBroken
			}

			return nil, nil
		})
		breakable(func(note) bool {
			if attempts.Add(1) == 1 {
				return false
			}

			if concurrent.Add(1) > 1 {
				t.Error("two attempts run at the same time")
			}
			defer concurrent.Add(-1)

			trying <- struct{}{}

			<-proceed

			return true
		})(router)
	}, parking(1000))
	t.Cleanup(release)
	r.send(message("a", "1"))
	<-trying

	if out, err := r.failed.RetryNow(t.Context(), failed.KeyFilter{Key: "a"}, activity.Actor{Who: "test", Why: "to see"}); out.Due != 1 || err != nil {
		t.Fatalf("made due: %+v, %v", out, err)
	}

	// Another consumer's key becomes due later: once its message has been retried, the
	// loop has looked at both keys.
	r.send(event.Message{ID: event.NewID(), Topic: "others", Key: "b", Payload: []byte(`{"id":"b"}`)})
	pgtest.Eventually(t, "the message with another key is retried", func() bool { return others.Load() == 2 })
	release()
	r.settle()

	if got := r.texts("a"); got != "1" || attempts.Load() != 2 {
		t.Errorf("applied %q in %d attempts", got, attempts.Load())
	}
}

// The messages behind one that awaits its own topic are tried under the key's lease.
func TestALeaseCoversTheMessagesThatAreTriedAhead(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	failures := failed.NewStore(failed.DefaultConfig(), pool)

	for i := range 3 {
		e := failed.Entry{
			Consumer: "writer", Topic: "notes", Key: "a", MessageID: event.NewID(), Origin: "test", Headers: event.Headers{},
			Payload: fmt.Appendf(nil, `{"id":"a","text":"%d"}`, i),
		}

		if i == 0 {
			e.Reason, e.Error = event.ReasonEarly, "it is early"
		}

		if err := failures.Park(t.Context(), e, 0, "notes"); err != nil {
			t.Fatal(err)
		}
	}

	var ahead sync.Map

	trying, proceed := make(chan struct{}, 100), make(chan struct{})

	start(t, pool, func(router *consumer.Router) {
		consumer.On(router, "writer", func(_ context.Context, _ pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			if e.Ahead {
				if _, again := ahead.LoadOrStore(e.Payload.Text, true); again {
					t.Errorf("message %s is tried ahead twice", e.Payload.Text)
				}

				trying <- struct{}{}

				<-proceed
			}

			return nil, event.Await(errBroken, "notes")
		})
	}, func(c *consumer.Config) { c.Retries, c.AwaitTimeout = 0, time.Hour })

	leased := func() bool {
		return pgtest.Value[bool](t, pool, `SELECT leased_until > clock_timestamp() FROM failed_keys`)
	}

	<-trying

	if !leased() {
		t.Error("while a message is tried ahead, another replica may lease the key")
	}

	close(proceed)
	<-trying
	pgtest.Eventually(t, "the lease has ended", func() bool {
		return pgtest.Value[bool](t, pool, `SELECT leased_until IS NULL AND due_at < clock_timestamp() + interval '30 s' FROM failed_keys`)
	})
}

func TestALeasedKeyIsTriedDespiteALostConnection(t *testing.T) {
	t.Parallel()

	var works atomic.Bool

	pool := newPool(t)
	r := start(t, pool, breakable(func(note) bool { return works.Load() }), func(c *consumer.Config) {
		c.Retries, c.ParkInterval, c.ParkMaxInterval, c.ParkAttempts = 0, time.Hour, time.Hour, 9
	})
	r.send(message("a", "1"))
	pgtest.Eventually(t, "it waits", func() bool { return len(r.waiting("a")) == 1 })
	works.Store(true)

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()

	for _, sql := range []string{`UPDATE failed_keys SET due_at = now()`, `COMMIT AND CHAIN`, `LOCK TABLE failed_messages`} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	pgtest.Eventually(t, "the key is leased and its first message is read", func() bool {
		return pgtest.Value[bool](t, pool, `SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FROM failed_messages h%'`)
	})

	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	r.settle() // sooner than the lease expires

	if got := r.texts("a"); got != "1" {
		t.Errorf("applied %q", got)
	}
}

func TestSkippingTheFirstMessageOfAKeyFreesTheOthers(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), breakable(func(n note) bool { return n.Text != "1" }), func(c *consumer.Config) {
		c.Retries = 0
		c.ParkInterval, c.ParkMaxInterval, c.ParkAttempts = time.Hour, time.Hour, 9
	})
	r.send(message("a", "1"), message("a", "2"))
	pgtest.Eventually(t, "both wait", func() bool { list := r.waiting("a"); return len(list) == 1 && list[0].Blocked == 1 })

	queue, err := r.failed.Queue(t.Context(), r.waiting("a")[0].ID)
	if err != nil {
		t.Fatal(err)
	}

	by := activity.Actor{Who: "test", Why: "not worth it"}
	if _, err := r.failed.Skip(t.Context(), queue[1].ID, by); err == nil || !strings.Contains(err.Error(), "expected the first of its key") {
		t.Errorf("skipping the second message did not fail as expected: %v", err)
	}

	if _, err := r.failed.Skip(t.Context(), queue[0].ID, by); err != nil {
		t.Fatal(err)
	}

	r.settle()

	entries := r.stopped()
	if r.texts("a") != "2" || len(entries) != 1 || entries[0].Error != "skipped by test after 1 attempt: it is broken" || string(entries[0].Payload) != string(queue[0].Payload) {
		t.Errorf("applied %q, stopped %+v", r.texts("a"), entries)
	}
}

// performing is an effect that fails with fail's error, and writes a note.
func performing(fail func(note) error, needs string, performed *atomic.Int32) func(*consumer.Router) {
	return func(router *consumer.Router) {
		consumer.OnEffect(router, "writer", consumer.Effect[note, string]{
			Needs: func(event.Event[note]) string { return needs },
			Perform: func(_ context.Context, e event.Event[note]) (string, error) {
				performed.Add(1)

				return e.Payload.Text, fail(e.Payload)
			},
			Record: func(ctx context.Context, tx pgx.Tx, done []event.Effected[note, string]) ([]event.Outgoing, error) {
				for _, d := range done {
					if _, err := write(ctx, tx, d.Event); err != nil {
						return nil, err
					}
				}

				return nil, nil
			},
		})
	}
}

func TestAnEffectIsRetriedAfterTheRequestedDelay(t *testing.T) {
	t.Parallel()

	var (
		performed atomic.Int32
		busy      atomic.Bool
	)

	busy.Store(true)

	r := start(t, newPool(t), performing(func(n note) error {
		if busy.Load() && n.Text == "1" {
			return event.Later(time.Hour, errors.New("come back in an hour"))
		}

		return nil
	}, "", &performed), parking(1000))
	r.send(message("a", "1"), message("a", "2"), message("b", "x"))

	pgtest.Eventually(t, "both messages of the key wait", func() bool { list := r.waiting("a"); return len(list) == 1 && list[0].Blocked == 1 })

	if due := time.Until(r.waiting("a")[0].DueAt); due < 50*time.Minute {
		t.Errorf("due in %s, expected an hour", due)
	}

	if n := performed.Load(); n != 2 {
		t.Errorf("performed %d times, expected once each for a and b", n)
	}

	busy.Store(false)

	if _, err := r.failed.RetryNow(t.Context(), failed.KeyFilter{Consumer: "writer"}, activity.Actor{Who: "test"}); err != nil {
		t.Fatal(err)
	}

	r.settle()

	if got := r.texts("a") + "|" + r.texts("b"); got != "1 2|x" {
		t.Errorf("applied %s", got)
	}
}

// A server that allows only reads stays unavailable, even for messages that must be
// blocked.
func TestAFullDiskOpensTheBreakerForEffectsOfWaitingKeys(t *testing.T) {
	t.Parallel()

	var performed atomic.Int32

	r := start(t, newPool(t), performing(func(n note) error {
		if n.Text == "1" {
			return event.Later(time.Hour, errors.New("come back in an hour"))
		}

		return nil
	}, "", &performed), parking(1000))
	r.send(message("a", "1"))
	pgtest.Eventually(t, "the message waits", func() bool { return len(r.waiting("a")) == 1 })

	_, err := r.pool.Exec(t.Context(), `
		CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '53100' USING MESSAGE = 'disk full'; END $$;
		CREATE TRIGGER full_disk BEFORE INSERT ON failed_messages EXECUTE FUNCTION full_disk()`)
	if err != nil {
		t.Fatal(err)
	}

	r.send(message("a", "2"))

	database := r.needs.Get(postgres.Dependency)

	pgtest.Eventually(t, "Postgres stays unavailable although others can read", func() bool {
		if read, err := database.WaitToRead(t.Context()); err == nil {
			read.Answered()
		}

		state := database.State()

		return !state.Up && time.Since(*state.Since) > 4*time.Second
	})

	if _, err := r.pool.Exec(t.Context(), `DROP FUNCTION full_disk CASCADE`); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the message is blocked", func() bool { return r.waiting("a")[0].Blocked == 1 })

	if n := performed.Load(); n != 1 {
		t.Errorf("performed %d times, expected once", n)
	}
}

// A preliminary answer is not a failure: it neither counts nor opens the breaker.
func TestAPendingEffectIsAskedAboutIndefinitely(t *testing.T) {
	t.Parallel()

	const asked = 10 // more attempts than a failing message gets

	var (
		performed atomic.Int32
		decided   atomic.Bool
	)

	r := start(t, newPool(t), performing(func(n note) error {
		if n.ID == "slow" && !decided.Load() {
			return event.Pending(10*time.Millisecond, errors.New("not decided yet"))
		}

		return nil
	}, "provider", &performed), parking(1))
	r.send(message("slow", "1"), message("slow", "2"))
	pgtest.Eventually(t, "it is asked about repeatedly", func() bool { return performed.Load() > asked })
	r.send(message("other", "x"))
	pgtest.Eventually(t, "another message is applied", func() bool { return r.texts("other") == "x" })

	if list := r.waiting("slow"); len(list) != 1 || list[0].Attempts != 0 || list[0].Reason != event.ReasonPending || list[0].Blocked != 1 {
		t.Errorf("got %+v", list)
	}

	if suspended := r.router.Suspended(); len(suspended) != 0 {
		t.Errorf("%v are suspended", suspended)
	}

	if keys, _, err := r.failed.Count(t.Context()); err != nil || keys != 0 {
		t.Errorf("%d keys are counted as failing, %v", keys, err)
	}

	decided.Store(true)
	r.settle()

	if got := r.texts("slow"); got != "1 2" || len(r.stopped()) != 0 {
		t.Errorf("applied %s, stopped %v", got, r.stopped())
	}
}

// If a dependency cannot handle a message, the message is parked, the failure counts, and
// other messages wait.
func TestAnOverloadedDependencyIsSparedAndItsMessagesCount(t *testing.T) {
	t.Parallel()

	var (
		performed atomic.Int32
		busy      atomic.Bool
	)

	busy.Store(true)

	r := start(t, newPool(t), performing(func(note) error {
		if busy.Load() {
			return event.Overloaded("receiver", 0, errors.New("503"))
		}

		return nil
	}, "receiver", &performed), parking(1000))

	var batch []event.Message
	for i := range 400 {
		batch = append(batch, message(fmt.Sprint("n", i), "x"))
	}

	r.send(batch...)
	pgtest.Eventually(t, "the consumer is suspended", func() bool { return slices.Contains(r.router.Suspended(), "writer") })

	pgtest.Eventually(t, "a message that was tried is parked", func() bool {
		return pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages WHERE attempts > 0`) > 0
	})

	if tried := performed.Load(); tried > 300 {
		t.Errorf("%d attempts", tried)
	}

	busy.Store(false)
	r.settle()

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM notes WHERE text = 'x'`); n != 400 || len(r.stopped()) != 0 {
		t.Errorf("%d were applied, stopped %v", n, r.stopped())
	}
}

func TestDefaultsOfATopic(t *testing.T) {
	t.Parallel()

	stopsAfter := func(change func(*consumer.Config)) string {
		r := start(t, newPool(t), func(router *consumer.Router) {
			breakable(func(note) bool { return false })(router)
			router.Defaults(consumer.TopicConfig{Topic: note{}.Topic(), ParkAttempts: new(2)})
		}, parking(5), change)
		r.send(message("a", "1"))
		pgtest.Eventually(t, "it is stopped", func() bool { return len(r.stopped()) == 1 })

		return r.stopped()[0].Error
	}

	if got := stopsAfter(func(*consumer.Config) {}); got != "gave up after 3 attempts: it is broken" {
		t.Errorf("the defaults of the topic: %s", got)
	}

	if got := stopsAfter(func(c *consumer.Config) {
		c.PerTopic = []consumer.TopicConfig{{Topic: note{}.Topic(), ParkAttempts: new(1)}}
	}); got != "gave up after 2 attempts: it is broken" {
		t.Errorf("the configuration of the topic: %s", got)
	}
}

func TestAnUnavailableDependencySuspendsOnlyItsConsumersAndStopsNoMessage(t *testing.T) {
	t.Parallel()

	var (
		performed atomic.Int32
		away      atomic.Bool
	)

	away.Store(true)

	r := start(t, newPool(t), func(router *consumer.Router) {
		performing(func(note) error {
			if away.Load() {
				return event.Unavailable("provider", errors.New("connection refused"))
			}

			return nil
		}, "provider", &performed)(router)
		consumer.On(router, "other", func(ctx context.Context, tx pgx.Tx, e event.Event[other]) ([]event.Outgoing, error) {
			_, err := tx.Exec(ctx, `INSERT INTO notes (id, text) VALUES ($1, 'other')`, e.Payload.ID)

			return nil, err
		})
	}, parking(1))

	var batch []event.Message
	for i := range 400 { // more than the number of lanes
		batch = append(batch, message(fmt.Sprint("n", i), "x"))
	}

	r.send(batch...)
	pgtest.Eventually(t, "the consumer is suspended", func() bool { return slices.Contains(r.router.Suspended(), "writer") })
	r.send(event.Message{ID: event.NewID(), Topic: "others", Key: "o", Payload: []byte(`{"id":"o"}`)})
	pgtest.Eventually(t, "the other consumer continues", func() bool { return r.texts("o") == "other" })

	tried := performed.Load()
	if tried > 300 {
		t.Errorf("%d attempts while the provider was unavailable", tried)
	}

	if states := r.router.States(); len(states[0].Waits) != 1 || states[0].Waits[0].Name != "provider" || states[0].Waits[0].Since == nil || states[1].Waits != nil {
		t.Errorf("got %+v", states)
	}

	away.Store(false)
	r.settle()

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM notes WHERE text = 'x'`); n != 400 || len(r.stopped()) != 0 {
		t.Errorf("%d were applied, stopped %v", n, r.stopped())
	}
}

func TestSimultaneousFailuresCauseOneDelay(t *testing.T) {
	t.Parallel()

	const messages = 20

	var begun atomic.Int32

	all := make(chan struct{})

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.OnEffect(router, "writer", consumer.Effect[note, string]{
			Needs: func(event.Event[note]) string { return "provider" },
			Perform: func(_ context.Context, e event.Event[note]) (string, error) {
				switch n := begun.Add(1); {
				case n == messages:
					close(all)
				case n > messages:
					return e.Payload.Text, nil
				}

				<-all

				return "", event.Unavailable(postgres.Dependency, errors.New("connection refused"))
			},
			Record: func(ctx context.Context, tx pgx.Tx, done []event.Effected[note, string]) ([]event.Outgoing, error) {
				for _, d := range done {
					if _, err := write(ctx, tx, d.Event); err != nil {
						return nil, err
					}
				}

				return nil, nil
			},
		})
	})

	for i := range messages {
		r.send(message(fmt.Sprint("n", i), "x"))
	}

	pgtest.Eventually(t, "postgres is available again after one delay", func() bool {
		s := r.needs.Get(postgres.Dependency).State()
		if s.RetryAt != nil && time.Until(*s.RetryAt) > 500*time.Millisecond {
			t.Fatalf("the next attempt is in %s", time.Until(*s.RetryAt))
		}

		return s.Up && begun.Load() >= messages
	})
	r.settle()
}

// other is a payload of another topic.
type other struct {
	ID string `json:"id"`
}

func (other) Topic() string   { return "others" }
func (o other) Key() string   { return o.ID }
func (other) Validate() error { return nil }

func TestAPausedConsumerTakesNoMessagesUntilResumed(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	r := start(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })
	by := activity.Actor{Who: "test", Why: "maintenance of notes"}

	if changed, err := r.router.Pause(t.Context(), "writer", 0, by); err != nil || !changed {
		t.Fatalf("%t, %v", changed, err)
	}

	if changed, err := r.router.Pause(t.Context(), "writer", 0, by); err != nil || changed {
		t.Errorf("a second pause changed something: %t, %v", changed, err)
	}

	if _, err := r.router.Pause(t.Context(), "writre", 0, by); event.KindOf(err) != event.Unknown || !strings.Contains(err.Error(), "did you mean writer") {
		t.Errorf("got %v", err)
	}

	pgtest.Eventually(t, "the router has seen the pause", func() bool { return len(r.router.Suspended()) == 1 })
	r.send(message("a", "1"))
	r.stop()

	// Another process learns of the pause before it takes its first message.
	later := startBlind(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })
	if p := later.router.States()[0].Pause; p == nil || p.Why != by.Why {
		t.Errorf("it started with pause %+v", p)
	}

	if got := later.texts("a"); got != "" {
		t.Errorf("a paused consumer applied %q", got)
	}

	if changed, err := later.router.Resume(t.Context(), "writer", by); err != nil || !changed {
		t.Fatalf("%t, %v", changed, err)
	}

	later.settle()

	if got := later.texts("a"); got != "1" {
		t.Errorf("applied %q", got)
	}
}

// startBlind starts a router that cannot read the pauses for a while.
func startBlind(t *testing.T, pool *pgxpool.Pool, register func(*consumer.Router)) *rig {
	t.Helper()

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if _, err := tx.Exec(t.Context(), `LOCK TABLE paused_consumers`); err != nil {
		t.Fatal(err)
	}

	var releasing atomic.Bool // set before the lock is released: the router may start immediately

	released := make(chan struct{})

	go func() {
		defer close(released)
		defer func() { _ = tx.Rollback(context.Background()) }()

		pgtest.Eventually(t, "it tries to read the pauses", func() bool {
			return pgtest.Value[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'paused_consumers'::regclass AND NOT granted)`)
		})
		releasing.Store(true)
	}()

	r := start(t, pool, register)

	if !releasing.Load() {
		t.Error("it started before it could read the pauses")
	}

	<-released

	return r
}

func TestOrderPerKeyHoldsUnderFailures(t *testing.T) {
	t.Parallel()

	const always = 1000

	pool := newPool(t)

	rapid.Check(t, func(rt *rapid.T) {
		if _, err := pool.Exec(context.Background(), `TRUNCATE notes, failed_messages CASCADE`); err != nil {
			rt.Fatal(err)
		}

		keys := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 20).Draw(rt, "keys")
		failures := rapid.MapOfN(rapid.IntRange(0, len(keys)-1), rapid.SampledFrom([]int{1, 2, 3, always}), 0, 4).Draw(rt, "failures of a message")
		restart := rapid.IntRange(0, len(keys)).Draw(rt, "restart before")

		want := map[string][]string{}

		for i, key := range keys {
			if failures[i] != always { // otherwise it is stopped
				want[key] = append(want[key], fmt.Sprint(i))
			}
		}

		var mu sync.Mutex

		handle := breakable(func(n note) bool {
			mu.Lock()
			defer mu.Unlock()

			var i int

			_, _ = fmt.Sscan(n.Text, &i)
			failures[i]--

			return failures[i] < 0
		})

		r := start(t, pool, handle, parking(3))

		for i, key := range keys {
			if i == restart {
				r.stop()
				r = start(t, pool, handle, parking(3))
			}

			r.send(message(key, fmt.Sprint(i)))
		}

		r.settle()
		r.stop()

		for _, key := range []string{"a", "b", "c"} {
			if got := r.texts(key); got != strings.Join(want[key], " ") {
				rt.Fatalf("key %s: applied %q, expected %v", key, got, want[key])
			}
		}
	})
}

func TestALateResultIsNotDropped(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	m := message("a", "1")

	put := func(text string) func(context.Context, pgx.Tx, []event.Effected[note, string]) ([]event.Outgoing, error) {
		return func(ctx context.Context, tx pgx.Tx, done []event.Effected[note, string]) ([]event.Outgoing, error) {
			_, err := tx.Exec(ctx, `INSERT INTO notes (id, text) VALUES ($1, $2)`, done[0].Payload.ID, text+*done[0].Result)

			return nil, err
		}
	}

	r := start(t, pool, func(router *consumer.Router) {
		consumer.OnEffect(router, "writer", consumer.Effect[note, string]{
			Perform: func(ctx context.Context, e event.Event[note]) (string, error) {
				// Another replica applies the event first.
				batch := &pgx.Batch{}
				inbox.ClaimNew(batch, "writer", []inbox.Entry{{ID: e.ID, Fingerprint: event.Fingerprint(m.Payload)}})

				return "captured", pool.SendBatch(ctx, batch).Close()
			},
			Record: put("recorded "),
			Late:   put("late "),
		})
	})
	r.send(m)
	r.settle()

	if got := r.texts("a"); got != "late captured" {
		t.Errorf("got %q", got)
	}
}

func TestASlowConsumerLeavesRoomForOthersToRetry(t *testing.T) {
	t.Parallel()

	var slow atomic.Bool

	leave := make(chan struct{})
	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "other", func(context.Context, pgx.Tx, event.Event[other]) ([]event.Outgoing, error) {
			if slow.Load() {
				<-leave

				return nil, nil
			}

			return nil, errBroken
		})
		breakable(func(note) bool { return slow.Load() })(router)
	}, func(c *consumer.Config) {
		c.Retries = 0
		c.ParkInterval, c.ParkMaxInterval, c.ParkAttempts = time.Hour, time.Hour, 9
	})
	defer close(leave)

	var batch []event.Message
	for i := range 100 {
		batch = append(batch, event.Message{ID: event.NewID(), Topic: "others", Key: fmt.Sprint(i), Payload: fmt.Appendf(nil, `{"id":"%d"}`, i)})
	}

	r.send(append(batch, message("a", "1"))...)
	pgtest.Eventually(t, "all are parked", func() bool { return len(r.waiting("")) == 101 })
	slow.Store(true)

	if _, err := r.failed.RetryNow(t.Context(), failed.KeyFilter{Consumer: "other"}, activity.Actor{Who: "test"}); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the slow consumer's messages are being retried", func() bool {
		return pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_keys WHERE consumer = 'other' AND leased_until > now()`) >= 32
	})

	if _, err := r.failed.RetryNow(t.Context(), failed.KeyFilter{Consumer: "writer"}, activity.Actor{Who: "test"}); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the other consumer's message is applied", func() bool { return r.texts("a") == "1" })
}

// requeue requeues all stopped messages.
func (r *rig) requeue() {
	r.t.Helper()

	check := func(_ string, payload []byte) (string, error) {
		n, err := event.Decode[note](payload)

		return n.ID, err
	}

	o, err := r.failed.Requeue(context.Background(), failed.Filter{}, activity.Actor{Who: "test"}, failed.Pace{Overtaken: true}, check)
	if err != nil || o.Refused != 0 || o.Done == 0 {
		r.t.Fatalf("got %+v, %v", o, err)
	}
}

func TestARequeuedMessageThatFailsAgainIsStoppedWithoutWaiting(t *testing.T) {
	t.Parallel()

	var (
		attempts atomic.Int32
		fixed    atomic.Bool
	)

	r := start(t, newPool(t), breakable(func(n note) bool { attempts.Add(1); return n.Text != "1" || fixed.Load() }), parking(2))
	r.send(message("a", "1"), message("a", "2"))
	r.settle()

	if entries := r.stopped(); len(entries) != 1 || entries[0].Attempts != 3 || entries[0].Deliveries != 1 {
		t.Fatalf("got %+v", entries)
	}

	before := attempts.Load()

	r.requeue()
	r.settle()

	entries := r.stopped()
	if len(entries) != 1 || entries[0].Attempts != 4 || entries[0].Deliveries != 2 || attempts.Load() != before+1 {
		t.Errorf("got %+v after %d attempts", entries, attempts.Load()-before)
	}

	actions, err := r.failed.Actions(t.Context(), entries[0].ID)
	if err != nil || len(actions) != 2 || actions[0].Action != activity.Requeued || actions[1].Action != activity.Reopened || actions[1].Who != activity.Service {
		t.Errorf("got %+v, %v", actions, err)
	}

	fixed.Store(true)
	r.requeue()
	r.settle()

	e, err := r.failed.Get(t.Context(), entries[0].ID)
	if err != nil || e.State != failed.Resolved || e.Resolution != failed.Applied || r.texts("a") != "2 1" {
		t.Errorf("applied %q; got %+v, %v", r.texts("a"), e, err)
	}
}

func TestAReusedIDIsAppliedUnderANewIDCausedByTheOldOne(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", write) })
	first, second := message("a", "first"), message("a", "second")
	second.ID = first.ID
	r.send(first)
	r.settle()
	r.send(second)
	r.settle()
	r.requeue()
	r.settle()

	if got := r.texts("a"); got != "first second" {
		t.Errorf("applied %q", got)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM inbox i JOIN failed_messages f ON f.applied_as = i.message_id
		WHERE i.causation_id = $1 AND i.correlation_id = $1 AND f.state = 'resolved'`, first.ID); n != 1 {
		t.Errorf("%d inbox rows of the new id, expected 1", n)
	}
}

func TestManyRequeuedMessagesAreAppliedInOrderWithoutWaitingForATick(t *testing.T) {
	t.Parallel()

	var fixed atomic.Bool

	r := start(t, newPool(t), breakable(func(note) bool { return fixed.Load() }), func(c *consumer.Config) { c.Retries = 0 })

	var want []string

	for i := range 10 {
		want = append(want, fmt.Sprint(i))

		for key := range 100 { // more keys than are retried concurrently
			r.send(message(fmt.Sprint("k", key), fmt.Sprint(i)))
		}
	}

	pgtest.Eventually(t, "all are stopped", func() bool { return len(r.stopped()) == 1000 })
	fixed.Store(true)

	r.requeue()
	r.settle()

	for key := range 100 {
		if got := r.texts(fmt.Sprint("k", key)); got != strings.Join(want, " ") {
			t.Errorf("key %d: applied %s", key, got)
		}
	}
}

func TestDrainFinishesARunningRetry(t *testing.T) {
	t.Parallel()

	var second atomic.Bool

	entered, leave := make(chan struct{}), make(chan struct{})

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			if !second.Swap(true) {
				return nil, errBroken
			}

			close(entered)
			<-leave

			return write(ctx, tx, e)
		})
	}, parking(5))
	r.send(message("a", "1"))
	<-entered
	r.cancel()
	close(leave)
	r.stop()

	if got := r.texts("a"); got != "1" {
		t.Errorf("applied %q", got)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM failed_messages`); n != 0 {
		t.Errorf("%d messages still wait after being applied", n)
	}
}
