package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/outside"
	"github.com/millracehq/millrace/cmd/proof/proxy"
	"github.com/millracehq/millrace/cmd/proof/replica"
	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/cmd/proof/wire"
)

// database is the database of the service.
const database = "millrace"

// world holds what the service lives in: servers, proxies in front of them, and other
// systems.
type world struct {
	options

	dir      string
	postgres *server.Postgres
	broker   *server.Broker
	// toPostgres and toBroker are between the service and its servers. toBroker is nil on
	// the embedded broker.
	toPostgres, toBroker *proxy.Proxy
	provider             *outside.Provider
	mail                 *outside.Mail
	webhooks             *outside.Webhooks

	db    *pgxpool.Pool
	wire  wire.Broker
	kafka *wire.Kafka
	slots []*slot
}

// slot is the place of a replica, which is started again whenever it ends.
type slot struct {
	mu    sync.Mutex
	fleet *replica.Fleet
	log   *os.File
}

func newWorld(ctx context.Context, o options) (w *world, err error) {
	w = &world{options: o}

	if w.dir, err = server.NewDir(); err != nil {
		return nil, err
	}

	// Processes die, but the machine does not: what is written need not be flushed.
	if w.postgres, err = server.StartPostgres(ctx, w.dir, "max_connections=80", "fsync=off"); err != nil {
		return w, err
	}

	if err := w.startBroker(ctx); err != nil {
		return w, err
	}

	port, err := server.FreePort()
	if err != nil {
		return w, err
	}

	if w.toPostgres, err = proxy.Start(port, server.Loopback(w.postgres.Port()), "postgres"); err != nil {
		return w, err
	}

	if w.provider, err = outside.StartProvider(o.seed); err != nil {
		return w, err
	}

	if w.mail, err = outside.StartMail(o.seed); err != nil {
		return w, err
	}

	if w.webhooks, err = outside.StartWebhooks(o.seed); err != nil {
		return w, err
	}

	w.db, err = pgxpool.New(ctx, w.postgres.URL(database))

	return w, err
}

func (w *world) startBroker(ctx context.Context) error {
	port, err := server.FreePort()
	if err != nil {
		return err
	}

	if w.broker, err = server.StartBrokerBehind(ctx, w.kind, w.dir, port); err != nil || w.kind == server.Embedded {
		return err
	}

	w.toBroker, err = proxy.Start(port, w.broker.Upstream(), w.kind)

	return err
}

// close ends everything. It keeps the directory.
func (w *world) close() {
	for _, s := range w.slots {
		s.mu.Lock()
		s.fleet.KillAll()
		s.mu.Unlock()
		_ = s.log.Close()
	}

	if w.wire != nil {
		w.wire.Close()
	}

	if w.db != nil {
		w.db.Close()
	}

	for _, p := range []*proxy.Proxy{w.toPostgres, w.toBroker} {
		if p != nil {
			p.Close()
		}
	}

	if w.provider != nil {
		w.provider.Close()
	}

	if w.mail != nil {
		w.mail.Close()
	}

	if w.webhooks != nil {
		w.webhooks.Close()
	}

	if w.broker != nil {
		_ = w.broker.Thaw(context.Background()) // if it was frozen
		_ = w.broker.Kill(context.Background())
	}

	if w.postgres != nil {
		_ = w.postgres.Crash()
	}
}

// prepare migrates the database, gives it stock and starts the replicas.
func (w *world) prepare(ctx context.Context, stock map[string]int64) error {
	cmd := exec.CommandContext(ctx, w.service, "migrate", "up")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+w.postgres.URL(database))

	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("migrating: %w: %s", err, out)
	}

	for product, n := range stock {
		if _, err := w.db.Exec(ctx, `INSERT INTO stock (product_id, supplied, available) VALUES ($1, $2, $2)`, product, n); err != nil {
			return err
		}
	}

	for i := range w.replicas {
		log, err := os.Create(filepath.Join(w.dir, fmt.Sprintf("replica-%d.log", i+1)))
		if err != nil {
			return err
		}

		s := &slot{log: log, fleet: &replica.Fleet{Program: w.service, Log: log, Environment: w.environment()}}
		w.slots = append(w.slots, s)

		if err := s.fleet.Start(ctx, 1); err != nil {
			return err
		}
	}

	return w.connect(ctx)
}

// connect opens the broker's topics, which exist by now.
func (w *world) connect(ctx context.Context) (err error) {
	switch w.kind {
	case server.Kafka:
		if w.kafka, err = wire.OpenKafka(ctx, w.broker.Address()); err != nil {
			return err
		}

		w.wire, err = w.kafka, w.kafka.Hurry(publishTimeout)
	case server.RabbitMQ:
		var r *wire.RabbitMQ
		if r, err = wire.OpenRabbitMQ(w.broker); err != nil {
			return err
		}

		w.wire, err = r, r.Observe(observer, "millrace")
	default:
		w.wire = wire.Embedded{DB: w.db}
	}

	return err
}

// observer is the queue that gets all that is published on RabbitMQ.
const observer = "proof.observer"

// environment configures the replicas: with short time-outs, so that a short run contains
// many faults, and with all that goes out directed to the stand-ins.
func (w *world) environment() []string {
	env := append(os.Environ(),
		"DATABASE_URL="+w.postgres.URLAt(w.toPostgres.Address(), database),
		"MILLRACE_POSTGRES__MAX_CONNS=8",
		"MILLRACE_BROKER__KIND="+w.kind,
		"MILLRACE_BROKER__KAFKA__PARTITIONS=4",
		"MILLRACE_CONSUMER__HANDLER_TIMEOUT=5s",
		"MILLRACE_CONSUMER__PARK_INTERVAL=300ms",
		"MILLRACE_CONSUMER__PARK_MAX_INTERVAL=2s",
		`MILLRACE_CONSUMER__PER_TOPIC=[{"topic": "notifications.webhook", "park_interval": "300ms", "park_max_interval": "2s"}]`,
		"MILLRACE_CONSUMER__AWAIT_TIMEOUT=1h", // whether an update is a miss must not depend on the load of the machine
		"MILLRACE_CONSUMER__DRAIN_TIMEOUT=5s",
		"MILLRACE_OUTBOX__POLL_INTERVAL=200ms",
		"MILLRACE_OUTBOX__DRAIN_TIMEOUT=2s",
		"MILLRACE_FULFILMENT__PAYMENT_TIMEOUT=20s",
		"MILLRACE_PAYMENT__GATEWAY=stripe",
		"MILLRACE_PAYMENT__STRIPE__SECRET_KEY=sk_test_"+secretKey,
		"MILLRACE_PAYMENT__STRIPE__URL="+w.provider.URL,
		"MILLRACE_PAYMENT__STRIPE__TIMEOUT=2s",
		"MILLRACE_NOTIFICATION__EMAIL__HOST=127.0.0.1",
		"MILLRACE_NOTIFICATION__EMAIL__TLS=none",
		fmt.Sprintf("MILLRACE_NOTIFICATION__EMAIL__PORT=%d", w.mail.Port),
		"MILLRACE_NOTIFICATION__WEBHOOK__URL="+w.webhooks.URL,
		"MILLRACE_NOTIFICATION__WEBHOOK__SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"MILLRACE_NOTIFICATION__WEBHOOK__ALLOW_NETWORKS=127.0.0.0/8",
	)

	if w.toBroker != nil {
		env = append(env,
			"MILLRACE_BROKER__KAFKA__BROKERS="+w.toBroker.Address(),
			"MILLRACE_BROKER__RABBITMQ__URL="+w.broker.AddressAt(w.toBroker.Address()))
	}

	return env
}

// secretKey is part of the provider's key, which must not appear in a log.
const secretKey = "proofxkeyx"

// alive returns the replica of a slot, and starts one if there is none. The caller holds
// the lock.
func (s *slot) alive() (*replica.Replica, error) {
	if len(s.fleet.Running) > 0 {
		r := s.fleet.Running[0]

		select {
		case <-r.Ended():
			s.fleet.Kill(0) // forget it
		default:
			return r, nil
		}
	}

	return s.fleet.Launch()
}

// supervise starts replicas again that have ended on their own, until ctx ends.
func (w *world) supervise(ctx context.Context) {
	for ctx.Err() == nil {
		for _, s := range w.slots {
			if s.mu.TryLock() {
				_, _ = s.alive() // tried again below

				s.mu.Unlock()
			}
		}

		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// drain stops all replicas as an orchestrator does.
func (w *world) drain() error {
	var errs []error

	for _, s := range w.slots {
		s.mu.Lock()

		if _, err := s.alive(); err == nil {
			errs = append(errs, s.fleet.Stop(0))
		}

		s.mu.Unlock()
	}

	return errors.Join(errs...)
}

// logs returns the paths of the replicas' logs.
func (w *world) logs() (paths []string) {
	for _, s := range w.slots {
		paths = append(paths, s.log.Name())
	}

	return paths
}

// died returns how many replicas ended on their own.
func (w *world) died() (n int) {
	for _, s := range w.slots {
		n += int(s.fleet.Died.Load())
	}

	return n
}
