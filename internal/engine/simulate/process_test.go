package simulate_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/broker/embedded"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// process is a replica of the service: the real router, relay, windows and failed
// messages.
type process struct {
	w    *world
	name string
	// dead is true once the process has been killed: nothing that it does has an effect.
	dead bool

	pool     *pgxpool.Pool
	failures *failed.Store
	router   *consumer.Router
	relay    *outbox.Relay
	embedded *embedded.Driver

	cancel, cancelRelay context.CancelFunc
	done                chan struct{}
}

// start starts a process.
func (w *world) start() *process {
	w.processes++
	p := &process{w: w, name: fmt.Sprint("process ", w.processes), done: make(chan struct{})}
	logger, registry := slog.New(w.logHandler(p.name)), prometheus.NewRegistry()

	p.pool = w.connect(p)
	p.failures = failed.NewStore(failed.DefaultConfig(), p.pool)
	p.relay = outbox.NewRelay(outbox.Config{BatchSize: w.batch, MaxInFlight: 4 * w.batch, PollInterval: time.Second, DrainTimeout: 2 * time.Second}, p.pool, logger, registry)

	needs := breaker.NewSet(logger, registry)
	router := w.router(p, needs, logger, registry)
	p.router = router

	var (
		running, relaying context.Context
		relayed           sync.WaitGroup
	)

	running, p.cancel = context.WithCancel(context.Background())
	relaying, p.cancelRelay = context.WithCancel(context.Background())

	target := outbox.Target{Publisher: publisher{w.medium, p}, Lanes: w.lanes, Run: w.length, Suspended: router.SuspendedTopics, Breaker: needs.Get("broker")}

	if w.mode == modeEmbedded {
		p.embedded = embedded.New(embedded.Config{Lanes: w.lanes})
		_ = p.embedded.Connect(running, w.topics())
		target.Publisher, target.Breaker = p.embedded.Publisher(), nil
	}

	w.running.Go(func() {
		defer close(p.done)

		err := router.Run(running, []consumer.Source{source{p, func() { relayed.Go(func() { p.relay.Run(relaying, target) }) }}}, func() {})

		p.cancelRelay()
		relayed.Wait()

		if p.embedded != nil {
			_ = p.embedded.Close()
		}

		p.pool.Close()

		if err != nil && running.Err() == nil {
			w.problemf("%s ended: %v", p.name, err)
		}
	})

	return p
}

// router returns a router of a process with the consumers of this world.
func (w *world) router(p *process, needs *breaker.Set, logger *slog.Logger, registry *prometheus.Registry) *consumer.Router {
	cfg := consumer.DefaultConfig()
	cfg.MaxBatch, cfg.ConcurrentBatches, cfg.Retries = w.batch, w.batches, 1
	cfg.ParkInterval, cfg.ParkMaxInterval, cfg.ParkAttempts, cfg.DrainTimeout = time.Second, 5*time.Second, 3, 3*time.Second

	router, err := consumer.NewRouter(cfg, p.pool, p.failures, needs, p.relay, nil, logger, registry)
	if err != nil {
		panic(err)
	}

	w.register(router)

	return router
}

// connect returns a pool that is connected to the model.
func (w *world) connect(p *process) *pgxpool.Pool {
	usual, closeUsual, err := postgres.NewPool(postgres.Config{URL: "postgres://model@model/model?sslmode=disable", MaxConns: 6})
	if err != nil {
		panic(err)
	}

	cfg := usual.Config()
	closeUsual()

	cfg.ConnConfig.DialFunc = w.server.dial(p)
	cfg.ConnConfig.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"192.0.2.1"}, nil }

	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		panic(err)
	}

	return pool
}

// stop ends a process as SIGTERM does.
func (p *process) stop() {
	p.cancel()
	<-p.done
}

// kill ends a process as SIGKILL does: from now on nothing that it does has an effect.
func (p *process) kill() {
	p.w.mu.Lock()
	p.dead = true
	p.w.server.kill(p)

	for _, t := range p.w.medium.topics {
		t.nudge()
	}

	p.w.mu.Unlock()

	p.cancel()
	p.cancelRelay()
}

// source connects the router to the broker.
type source struct {
	*process

	subscribed func()
}

func (source) Down() string                  { return "" }
func (source) Connect(context.Context) error { return nil }
func (source) Has(string) bool               { return true }
func (s source) Subscribed()                 { s.subscribed() }

func (s source) Subscriber(topic string, key func([]byte) string) (message.Subscriber, error) {
	if s.embedded != nil {
		return s.embedded.Subscriber(topic, key)
	}

	return s.w.medium.subscriber(s.process, topic, key), nil
}

func (w *world) topics() []driver.Topic {
	return []driver.Topic{{Name: topicOrders, Consumed: true}, {Name: topicResults, Consumed: true}}
}
