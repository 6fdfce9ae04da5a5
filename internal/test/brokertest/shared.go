package brokertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// step is a payload that two consumers receive. Steps of a key are numbered.
type step struct {
	ID     string `json:"id"`
	Number int    `json:"number"`
}

// sharedTopic belongs to one process, since brokers keep topics.
var sharedTopic = Topic()

func (step) Topic() string { return sharedTopic }

func (s step) Key() string { return s.ID }

func (s step) Validate() error { return event.CheckID("id", s.ID) }

// engine is a router with a relay on the broker of a harness.
type engine struct {
	tb     testing.TB
	router *consumer.Router
	stop   func()
}

func (h Harness) start(tb testing.TB, pool *pgxpool.Pool, register func(*consumer.Router)) *engine {
	tb.Helper()

	logger, registry := pgtest.Logger(tb), prometheus.NewRegistry()
	relay := outbox.NewRelay(outbox.DefaultConfig(), pool, logger, registry)
	cfg := consumer.DefaultConfig()
	cfg.RetryInterval, cfg.ParkInterval, cfg.ParkMaxInterval = time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	cfg.ParkAttempts = 1000

	router, err := consumer.NewRouter(cfg, pool, failed.NewStore(failed.DefaultConfig(), pool), breaker.NewSet(logger, registry), relay, logger, registry)
	if err != nil {
		tb.Fatal(err)
	}

	register(router)

	conn, err := broker.New(h.Config, logger)
	if err != nil {
		tb.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	relaying, stopRelay := context.WithCancel(context.Background())
	started, done := make(chan struct{}), make(chan error, 1)

	go func() {
		var relayed sync.WaitGroup

		err := router.Run(ctx, []consumer.Source{&source{Conn: conn, subscribed: func() {
			target := outbox.Target{Publisher: conn.Publisher(), Lanes: conn.Lanes()}
			if h.Config.Kind == broker.Embedded {
				target.Suspended = router.SuspendedTopics
			}

			relayed.Go(func() { relay.Run(relaying, target) })
		}}}, func() { close(started) })

		stopRelay()
		relayed.Wait()

		done <- errors.Join(err, conn.Close())
	}()

	e := &engine{tb: tb, router: router, stop: sync.OnceFunc(func() {
		cancel()

		if err := <-done; err != nil {
			tb.Errorf("stopping: %v", err)
		}
	})}
	tb.Cleanup(e.stop)

	select {
	case <-started:
	case err := <-done:
		tb.Fatalf("starting: %v", err)
	}

	return e
}

// source is the broker as the router sees it.
type source struct {
	*broker.Conn

	subscribed func()
}

func (s *source) Connect(ctx context.Context) error {
	return s.Conn.Connect(ctx, []broker.Topic{{Name: sharedTopic, Consumed: true}})
}

func (*source) Has(string) bool { return true }

func (s *source) Subscribed() { s.subscribed() }

// shared proves that two consumers of a topic each apply every message once and
// in order, while one of them fails, is paused, or starts again.
func (h Harness) shared(t *testing.T) {
	t.Helper()

	const keys, steps = 4, 5

	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE steps (n bigint GENERATED ALWAYS AS IDENTITY, consumer text, id text, number int)`); err != nil {
		t.Fatal(err)
	}

	var healed atomic.Bool

	write := func(name string, fails func(step) bool) func(context.Context, pgx.Tx, event.Event[step]) ([]event.Outgoing, error) {
		return func(ctx context.Context, tx pgx.Tx, e event.Event[step]) ([]event.Outgoing, error) {
			if fails(e.Payload) {
				return nil, errors.New("not yet")
			}

			_, err := tx.Exec(ctx, `INSERT INTO steps (consumer, id, number) VALUES ($1, $2, $3)`, name, e.Payload.ID, e.Payload.Number)

			return nil, err
		}
	}
	register := func(r *consumer.Router) {
		consumer.On(r, "steady", write("steady", func(step) bool { return false }))
		consumer.On(r, "failing", write("failing", func(s step) bool { return s.ID == "key-0" && !healed.Load() }))
	}
	applied := func(name string) int {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM steps WHERE consumer = $1`, name)
	}
	sent := 0
	send := func() {
		err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
			var events []event.Outgoing
			for number := range steps {
				for key := range keys {
					events = append(events, event.Start(step{ID: fmt.Sprintf("key-%d", key), Number: sent + number}))
				}
			}

			return outbox.Append(t.Context(), tx, events)
		})
		if err != nil {
			t.Fatal(err)
		}

		sent += steps
	}
	reach := func(what string, steady, failing int) {
		t.Helper()
		pgtest.Eventually(t, what, func() bool { return applied("steady") == steady && applied("failing") == failing })
	}

	e := h.start(t, pool, register)
	send()
	reach("only the key that fails waits", keys*steps, (keys-1)*steps)
	e.stop()

	e = h.start(t, pool, register)
	send()
	reach("it still waits after a restart", keys*2*steps, (keys-1)*2*steps)

	if _, err := e.router.Pause(t.Context(), "failing", activity.Actor{Who: "test", Why: "test"}); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the consumer is paused", func() bool { return len(e.router.Suspended()) == 1 })
	send()
	reach("a paused consumer does not stop the other", keys*3*steps, (keys-1)*2*steps)
	healed.Store(true)

	if _, err := e.router.Resume(t.Context(), "failing", activity.Actor{Who: "test", Why: "test"}); err != nil {
		t.Fatal(err)
	}

	reach("both have applied everything", keys*3*steps, keys*3*steps)
	e.stop()

	if n := pgtest.Value[int](t, pool, `SELECT count(DISTINCT (consumer, id, number))::int FROM steps`); n != 2*keys*3*steps {
		t.Errorf("%d different steps were applied, expected %d", n, 2*keys*3*steps)
	}

	if h.Config.Kind == broker.RabbitMQ {
		return // it gives up order between the consumers of a queue
	}

	if n := pgtest.Value[int](t, pool, `
		SELECT count(*)::int FROM (SELECT number - lag(number) OVER (PARTITION BY consumer, id ORDER BY n) AS step FROM steps) AS s
		WHERE step <> 1`); n != 0 {
		t.Errorf("%d steps are out of order", n)
	}
}
