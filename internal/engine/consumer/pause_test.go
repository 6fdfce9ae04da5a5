package consumer_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestAPauseEndsByItself(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	r := start(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })
	by := activity.Actor{Who: "ann", Why: "maintenance of notes"}

	pause := func(lasts time.Duration, want bool) *consumer.Pause {
		t.Helper()

		if changed, err := r.router.Pause(t.Context(), "writer", lasts, by); err != nil || changed != want {
			t.Fatalf("pausing for %s changed something: %t, %v", lasts, changed, err)
		}

		pauses, err := consumer.Pauses(t.Context(), pool)
		if err != nil || len(pauses) != 1 {
			t.Fatalf("got %v, %v", pauses, err)
		}

		return &pauses[0]
	}

	if p := pause(0, true); p.Until != nil {
		t.Errorf("it ends at %s", p.Until)
	}

	first := pause(time.Hour, true)
	if first.Until == nil || first.Until.Sub(first.At) < time.Hour || first.Until.Sub(first.At) > time.Hour+time.Minute {
		t.Errorf("got %+v", first)
	}

	if p := pause(0, true); p.Until != nil || !p.At.Equal(first.At) {
		t.Errorf("a pause without an end: got %+v", p)
	}

	pause(0, false)
	pause(2*time.Second, true)
	pgtest.Eventually(t, "the router has seen the pause", func() bool { return len(r.router.Suspended()) == 1 })
	r.send(message("a", "1"))
	r.settle() // once the pause is over

	if got := r.texts("a"); got != "1" {
		t.Errorf("applied %q", got)
	}

	got := pgtest.Value[string](t, pool, `SELECT string_agg(who || ' ' || action || ' ' || subject || ' ' || detail, ', ' ORDER BY id) FROM operator_actions`)
	if want := "ann paused writer , ann paused writer for 1h0m0s, ann paused writer , ann paused writer for 2s, millrace resumed writer "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*) FROM paused_consumers`); n != 0 {
		t.Errorf("%d pauses are left", n)
	}
}

func TestAPauseMayLastAFractionOfASecondLonger(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	r := start(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })

	if _, err := r.router.Pause(t.Context(), "writer", 90*time.Minute+500*time.Millisecond, activity.Actor{Who: "ann"}); err != nil {
		t.Fatal(err)
	}

	if lasts := pgtest.Value[float64](t, pool, `SELECT extract(epoch FROM until - paused_at)::float8 FROM paused_consumers`); lasts < 5400.5 {
		t.Errorf("it lasts %.3f s, expected 5400.5 s", lasts)
	}
}

// A consumer may wait for a dependency that another one has found unavailable.
func TestATopicIsStalledIfAnotherConsumerFoundItsDependencyUnavailable(t *testing.T) {
	t.Parallel()

	var performed atomic.Int32

	r := start(t, newPool(t), performing(func(note) error { return nil }, "gateway", &performed))
	gateway := r.needs.Get("gateway")

	for gateway.State().Up {
		gateway.Failed(errors.New("connection refused"))
	}

	probe, err := gateway.Wait(t.Context()) // so that nobody else tries it
	if err != nil {
		t.Fatal(err)
	}

	r.send(message("a", "1"))
	pgtest.Eventually(t, "the topic is stalled", func() bool { return r.router.Stalled("notes") == "writer is waiting for gateway" })
	probe.Answered()
	r.settle()

	if got := r.router.Stalled("notes"); got != "" || performed.Load() != 1 {
		t.Errorf("%s; performed %d times", got, performed.Load())
	}
}

// While a topic is stalled, its messages may be inside a broker, where they cannot be
// seen.
func TestEveryMessageOfAStalledTopicIsUndelivered(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", write) })

	if _, err := r.router.Pause(t.Context(), "writer", 0, activity.Actor{Who: "ann"}); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the topic is stalled", func() bool { return r.router.Stalled("notes") != "" })

	if got, err := consumer.NewUndelivered(r.router)(t.Context(), "notes", []string{"a", "b"}); err != nil || len(got) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
}

// If the outbox cannot be searched in time, all its keys count as undelivered.
func TestAMessageIsUndeliveredUnlessTheOutboxSaysOtherwise(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	r := start(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })
	undelivered := consumer.NewUndelivered(r.router)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	if got, err := undelivered(ctx, "notes", []string{"a"}); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}

	err := postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE outbox`); err != nil {
			return err
		}

		got, err := undelivered(ctx, "notes", []string{"a"})
		if len(got) != 1 {
			t.Errorf("got %v", got)
		}

		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A server that refuses every write still answers reads.
func TestPostgresIsUnavailableUntilWritesWork(t *testing.T) {
	t.Parallel()

	for _, state := range []string{"53100", "42501", "25006"} { // disk full, no privilege, read-only
		t.Run(state, func(t *testing.T) {
			t.Parallel()

			pool := newPool(t)
			r := start(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })
			postgres := r.needs.Get("postgres")

			if _, err := pool.Exec(t.Context(), `
				CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'cannot write' USING ERRCODE = '`+state+`'; END $$;
				CREATE TRIGGER refuse BEFORE INSERT ON notes EXECUTE FUNCTION refuse()`); err != nil {
				t.Fatal(err)
			}

			r.send(message("a", "1"))
			pgtest.Eventually(t, "the breaker is open", func() bool { return !postgres.State().Up })

			first := postgres.State()
			pgtest.Eventually(t, "writes have been tried for a few seconds", func() bool {
				now := postgres.State()
				if now.Up || !now.Since.Equal(*first.Since) || !strings.Contains(now.Why, state) {
					t.Fatalf("at first %+v, now %+v", first, now)
				}

				return now.RetryAt.Sub(*now.Since) > 4*time.Second
			})

			if _, err := pool.Exec(t.Context(), `DROP TRIGGER refuse ON notes`); err != nil {
				t.Fatal(err)
			}

			r.settle()
			pgtest.Eventually(t, "the breaker is closed", func() bool { return postgres.State().Up })

			if got, stopped := r.texts("a"), r.stopped(); got != "1" || len(stopped) > 0 {
				t.Errorf("applied %q; stopped %+v", got, stopped)
			}
		})
	}
}
