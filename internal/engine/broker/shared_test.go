package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// step is a payload that two consumers receive. Steps are numbered per key.
type step struct {
	ID     string `json:"id"`
	Number int    `json:"number"`
}

// sharedTopic is unique per process, because brokers keep topics.
var sharedTopic = brokertest.Topic()

func (step) Topic() string { return sharedTopic }

func (s step) Key() string { return s.ID }

func (s step) Validate() error { return event.CheckID("id", s.ID) }

// engine is a router with a relay on a harness's broker.
type engine struct {
	tb     testing.TB
	router *consumer.Router
	stop   func()
}

// impatient returns a router that retries without long delays.
func impatient(tb testing.TB, pool *pgxpool.Pool, relay *outbox.Relay, logger *slog.Logger, registry *prometheus.Registry) *consumer.Router {
	tb.Helper()

	cfg := consumer.DefaultConfig()
	cfg.RetryInterval, cfg.ParkInterval, cfg.ParkMaxInterval = time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	cfg.ParkAttempts = 1000

	router, err := consumer.NewRouter(cfg, pool, failed.NewStore(failed.DefaultConfig(), pool), breaker.NewSet(logger, registry), relay, nil, logger, registry)
	if err != nil {
		tb.Fatal(err)
	}

	return router
}

func (h harness) start(tb testing.TB, pool *pgxpool.Pool, register func(*consumer.Router)) *engine {
	tb.Helper()

	logger, registry := pgtest.Logger(tb), prometheus.NewRegistry()
	relay := outbox.NewRelay(outbox.DefaultConfig(), pool, logger, registry)
	router := impatient(tb, pool, relay, logger, registry)
	register(router)

	consumed, _ := router.Topics()

	conn, err := broker.New(h.config, logger)
	if err != nil {
		tb.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	relaying, stopRelay := context.WithCancel(context.Background())
	started, done := make(chan struct{}), make(chan error, 1)

	go func() {
		var relayed sync.WaitGroup

		err := router.Run(ctx, []consumer.Source{&source{Conn: conn, topics: consumed, subscribed: func() {
			target := outbox.Target{Publisher: conn.Publisher(), Lanes: conn.Lanes(), Run: conn.Run()}
			if h.config.Kind == broker.Embedded {
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

// source adapts a broker to the router.
type source struct {
	*broker.Conn

	topics     []string
	subscribed func()
}

func (s *source) Connect(ctx context.Context) error {
	return s.Conn.Connect(ctx, postgres.Column(s.topics, func(topic string) broker.Topic { return broker.Topic{Name: topic, Consumed: true} }))
}

func (*source) Has(string) bool { return true }

func (s *source) Subscribed() { s.subscribed() }

// steps sends and checks the messages that two consumers of a topic apply.
type steps struct {
	*testing.T

	pool *pgxpool.Pool
	// sent is the number of steps sent per key.
	sent int
	// healed is true once the failing consumer no longer fails.
	healed atomic.Bool
}

const (
	sharedKeys  = 4
	stepsAtOnce = 5
)

// register adds a consumer that never fails, and one that fails for one key.
func (s *steps) register(r *consumer.Router) {
	write := func(name string, fails func(step) bool) func(context.Context, pgx.Tx, event.Event[step]) ([]event.Outgoing, error) {
		return func(ctx context.Context, tx pgx.Tx, e event.Event[step]) ([]event.Outgoing, error) {
			if fails(e.Payload) {
				return nil, errors.New("not yet")
			}

			_, err := tx.Exec(ctx, `INSERT INTO steps (consumer, id, number) VALUES ($1, $2, $3)`, name, e.Payload.ID, e.Payload.Number)

			return nil, err
		}
	}

	consumer.On(r, "steady", write("steady", func(step) bool { return false }))
	consumer.On(r, "failing", write("failing", func(e step) bool { return e.ID == "key-0" && !s.healed.Load() }))
}

// send publishes more steps for all keys.
func (s *steps) send() {
	s.Helper()

	err := postgres.InTx(s.Context(), s.pool, func(tx pgx.Tx) error {
		var events []event.Outgoing

		for number := range stepsAtOnce {
			for key := range sharedKeys {
				events = append(events, event.Start(step{ID: fmt.Sprintf("key-%d", key), Number: s.sent + number}))
			}
		}

		return outbox.Append(s.Context(), tx, events)
	})
	if err != nil {
		s.Fatal(err)
	}

	s.sent += stepsAtOnce
}

// wait waits until the consumers have applied the given numbers of steps.
func (s *steps) wait(what string, steady, failing int) {
	s.Helper()

	count := func(name string) int {
		return pgtest.Value[int](s, s.pool, `SELECT count(*)::int FROM steps WHERE consumer = $1`, name)
	}

	pgtest.Eventually(s, what, func() bool { return count("steady") == steady && count("failing") == failing })
}

// shared checks that two consumers of a topic each apply every message once and in
// order, while one of them fails, restarts and is paused.
func (h harness) shared(t *testing.T) {
	t.Helper()

	s := &steps{T: t, pool: pgtest.New(t)}
	if _, err := s.pool.Exec(t.Context(), `CREATE TABLE steps (n bigint GENERATED ALWAYS AS IDENTITY, consumer text, id text, number int)`); err != nil {
		t.Fatal(err)
	}

	e := h.start(t, s.pool, s.register)
	s.send()
	s.wait("only the failing key waits", sharedKeys*s.sent, (sharedKeys-1)*s.sent)
	e.stop()

	e = h.start(t, s.pool, s.register)
	s.send()
	s.wait("it still waits after a restart", sharedKeys*s.sent, (sharedKeys-1)*s.sent)

	operator := activity.Actor{Who: "test", Why: "test"}
	if _, err := e.router.Pause(t.Context(), "failing", 0, operator); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the consumer is paused", func() bool { return len(e.router.Suspended()) == 1 })

	before := s.sent
	s.send()
	s.wait("a paused consumer does not stop the other", sharedKeys*s.sent, (sharedKeys-1)*before)
	s.healed.Store(true)

	if _, err := e.router.Resume(t.Context(), "failing", operator); err != nil {
		t.Fatal(err)
	}

	s.wait("both have applied everything", sharedKeys*s.sent, sharedKeys*s.sent)
	e.stop()

	if n := pgtest.Value[int](t, s.pool, `SELECT count(DISTINCT (consumer, id, number))::int FROM steps`); n != 2*sharedKeys*s.sent {
		t.Errorf("%d distinct steps were applied, expected %d", n, 2*sharedKeys*s.sent)
	}

	if n := pgtest.Value[int](t, s.pool, `
		SELECT count(*)::int FROM (SELECT number - lag(number) OVER (PARTITION BY consumer, id ORDER BY n) AS step FROM steps) AS s
		WHERE step <> 1`); n != 0 {
		t.Errorf("%d steps are out of order", n)
	}
}
