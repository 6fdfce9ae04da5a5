package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/cmd/proof/proxy"
	"github.com/millracehq/millrace/cmd/proof/replica"
	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/cmd/proof/wire"
)

// fault is a fault of the schedule.
type fault struct {
	at   time.Duration
	kind kind
	// roll and hold decide the details: which replica, for how long.
	roll int
	hold time.Duration
}

func (f fault) String() string { return fmt.Sprintf("%5.1fs %s", f.at.Seconds(), f.kind.name) }

// kind is a kind of fault.
type kind struct {
	name   string
	weight int
	// target is what it disturbs: two faults of one target follow each other.
	target string
	// min and max bound how long it lasts.
	min, max time.Duration
	do       func(ctx context.Context, w *world, f fault) error
}

// kinds returns the kinds of faults for a broker.
func kinds(broker string) []kind {
	const s = time.Second

	list := []kind{
		{"kill -9 of a replica", 7, "replica", 0, s, killReplica},
		{"SIGTERM of a replica", 3, "replica", 0, s, stopReplica},
		{"SIGSTOP of a replica", 2, "replica", s, 14 * s, freezeReplica},
		{"kill -9 of Postgres", 1, "postgres", 0, 2 * s, func(ctx context.Context, w *world, f fault) error { return w.restartPostgres(ctx, f, w.postgres.Kill) }},
		{"immediate stop of Postgres", 1, "postgres", 0, 2 * s, func(ctx context.Context, w *world, f fault) error { return w.restartPostgres(ctx, f, w.postgres.Crash) }},
		{"restart of Postgres", 1, "postgres", 0, s, func(ctx context.Context, w *world, f fault) error { return w.restartPostgres(ctx, f, w.postgres.Stop) }},
		{"failover of Postgres", 1, "postgres", 0, 2 * s, func(ctx context.Context, w *world, f fault) error { return w.postgres.Failover(ctx, f.hold) }},
		{"sessions terminated", 3, "postgres", 0, s, terminateSessions},
		{"connections exhausted", 1, "postgres", s, 3 * s, exhaustConnections},
		{"rows locked", 2, "locks", s, 4 * s, lockRows},
		{"answers to COMMIT dropped", 5, "commit", 0, s, func(_ context.Context, w *world, f fault) error {
			w.toPostgres.Drop(1 + f.roll%5)

			return nil
		}},
		{"provider down", 1, "provider", s, 4 * s, down(func(w *world) func(bool) { return w.provider.Down })},
		{"mail server down", 1, "mail", s, 4 * s, down(func(w *world) func(bool) { return w.mail.Down })},
		{"webhook receiver down", 1, "webhooks", s, 4 * s, down(func(w *world) func(bool) { return w.webhooks.Down })},
		{"consumer paused by an operator", 2, "pause", s, 3 * s, pauseConsumer},
		{"waiting messages retried by an operator", 1, "retry", 0, s, retryWaiting},
	}

	for _, t := range proxy.Toxics {
		list = append(list, kind{"to Postgres: " + t.Type, 1, "postgres connection", s, 4 * s, spoil(func(w *world) *proxy.Proxy { return w.toPostgres }, t)})
	}

	if broker == server.Embedded {
		return list
	}

	list = append(list,
		kind{"kill -9 of the broker", 1, "broker", 0, s, func(ctx context.Context, w *world, f fault) error { return w.restartBroker(ctx, f, w.broker.Kill) }},
		kind{"restart of the broker", 1, "broker", 0, s, func(ctx context.Context, w *world, f fault) error { return w.restartBroker(ctx, f, w.broker.Stop) }},
		kind{"SIGSTOP of the broker", 1, "broker", s, 5 * s, freezeBroker},
		kind{"rebalance", 3, "rebalance", 0, s, rebalance},
		kind{"confirmations of the broker dropped", 5, "confirm", 0, s, func(_ context.Context, w *world, f fault) error {
			w.toBroker.Drop(1 + f.roll%5)

			return nil
		}},
	)

	for _, t := range proxy.Toxics {
		list = append(list, kind{"to the broker: " + t.Type, 1, "broker connection", s, 4 * s, spoil(func(w *world) *proxy.Proxy { return w.toBroker }, t)})
	}

	if broker == server.RabbitMQ {
		list = append(list, kind{"memory alarm", 1, "broker", s, 4 * s, memoryAlarm})
	}

	return list
}

// schedule returns the faults of a seed, in order.
func schedule(seed uint64, broker string, duration time.Duration) (list []fault) {
	random := rand.New(rand.NewPCG(seed, 5))
	all := kinds(broker)
	weights := 0

	for _, k := range all {
		weights += k.weight
	}

	for at := time.Second; at < duration; at += 300*time.Millisecond + time.Duration(random.IntN(1000))*time.Millisecond {
		n := random.IntN(weights)

		for _, k := range all {
			if n -= k.weight; n < 0 {
				hold := k.min + time.Duration(random.Int64N(int64(k.max-k.min)))
				list = append(list, fault{at: at, kind: k, roll: random.IntN(1 << 20), hold: min(hold, duration/3)})

				break
			}
		}
	}

	return list
}

// inflict runs the schedule. Faults that could not begin in time are left out.
func (r *run) inflict(ctx context.Context, list []fault) {
	var (
		running sync.WaitGroup
		targets = map[string]*sync.Mutex{}
	)

	for _, f := range list {
		if targets[f.kind.target] == nil {
			targets[f.kind.target] = &sync.Mutex{}
		}
	}

	deadline := time.Now().Add(r.duration)
	began := time.Now()

	for _, f := range list {
		if !pause(ctx, f.at-time.Since(began)) {
			break
		}

		running.Go(func() {
			targets[f.kind.target].Lock()
			defer targets[f.kind.target].Unlock()

			if time.Now().After(deadline) || ctx.Err() != nil {
				return
			}

			r.logf("%s", f)

			if err := f.kind.do(ctx, r.world, f); err != nil && ctx.Err() == nil {
				r.logf("%s: %v", f, err)

				return
			}

			r.survived(f.kind.name)
		})
	}

	running.Wait()
}

// pause waits, and reports whether ctx is still valid.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (w *world) pick(f fault) *slot { return w.slots[f.roll%len(w.slots)] }

func killReplica(ctx context.Context, w *world, f fault) error {
	return endReplica(ctx, w, f, func(fleet *replica.Fleet) { fleet.Kill(0) })
}

func stopReplica(ctx context.Context, w *world, f fault) error {
	return endReplica(ctx, w, f, func(fleet *replica.Fleet) {
		// Whether it drains in time is not the question while everything around it fails.
		_ = fleet.Stop(0)
	})
}

// endReplica ends a replica and starts it again after the fault's time.
func endReplica(ctx context.Context, w *world, f fault, end func(*replica.Fleet)) error {
	s := w.pick(f)
	s.mu.Lock()
	defer s.mu.Unlock()

	if _, err := s.alive(); err != nil {
		return err
	}

	end(s.fleet)
	pause(ctx, f.hold)

	_, err := s.alive()

	return err
}

func freezeReplica(ctx context.Context, w *world, f fault) error {
	s := w.pick(f)
	s.mu.Lock()
	defer s.mu.Unlock()

	r, err := s.alive()
	if err != nil {
		return err
	}

	if err := r.Freeze(); err != nil {
		return err
	}

	pause(ctx, f.hold)

	return r.Thaw()
}

func (w *world) restartPostgres(ctx context.Context, f fault, end func() error) error {
	if err := end(); err != nil {
		return err
	}

	pause(ctx, f.hold)

	return w.postgres.Start(context.WithoutCancel(ctx))
}

func terminateSessions(ctx context.Context, w *world, f fault) error {
	_, err := w.db.Exec(ctx, `
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name LIKE 'millrace%' AND ($1 = 0 OR pid % 2 = 0)`, f.roll%2)

	return err
}

// exhaustConnections takes all connections that are left.
func exhaustConnections(ctx context.Context, w *world, f fault) error {
	var held []*pgx.Conn

	defer func() {
		for _, conn := range held {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()

	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, w.postgres.URL(database))
		if err != nil {
			break
		}

		held = append(held, conn)
	}

	terminate := fmt.Sprintf("taking %d connections", len(held))

	if len(held) == 0 {
		return errors.New(terminate)
	}

	_, _ = held[0].Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'millrace%'`)

	pause(ctx, f.hold)

	return nil
}

// lockRows holds locks that the service needs.
func lockRows(ctx context.Context, w *world, f fault) error {
	sql := []string{
		`SELECT FROM stock FOR UPDATE`, `LOCK TABLE inbox IN SHARE MODE`, `LOCK TABLE outbox IN SHARE MODE`, `SELECT FROM outbox FOR UPDATE`,
		`LOCK TABLE failed_messages IN SHARE MODE`, `SELECT FROM orders FOR UPDATE`, `LOCK TABLE stripe_intents IN SHARE MODE`,
	}[f.roll%7]

	return pgx.BeginFunc(ctx, w.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql)
		pause(ctx, f.hold)

		return err
	})
}

// down makes another system unavailable for a while.
func down(system func(*world) func(bool)) func(context.Context, *world, fault) error {
	return func(ctx context.Context, w *world, f fault) error {
		system(w)(true)
		pause(ctx, f.hold)
		system(w)(false)

		return nil
	}
}

// spoil makes connections faulty for a while.
func spoil(of func(*world) *proxy.Proxy, t proxy.Toxic) func(context.Context, *world, fault) error {
	return func(ctx context.Context, w *world, f fault) error {
		p := of(w)
		if err := p.Add(t, f.roll%2 == 0); err != nil {
			return err
		}

		pause(ctx, f.hold)

		return p.Heal()
	}
}

func (w *world) restartBroker(ctx context.Context, f fault, end func(context.Context) error) error {
	if err := end(ctx); err != nil {
		return err
	}

	pause(ctx, f.hold)

	return w.broker.Start(context.WithoutCancel(ctx))
}

func freezeBroker(ctx context.Context, w *world, f fault) error {
	if err := w.broker.Freeze(ctx); err != nil {
		return err
	}

	pause(ctx, f.hold)

	return w.broker.Thaw(context.WithoutCancel(ctx))
}

func rebalance(ctx context.Context, w *world, f fault) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	_, err := w.wire.Rebalance(ctx, rand.New(rand.NewPCG(uint64(f.roll), 0))) //nolint:gosec // not negative

	return err
}

// memoryAlarm makes RabbitMQ block everybody who publishes.
func memoryAlarm(ctx context.Context, w *world, f fault) error {
	if _, err := w.broker.Control(ctx, "set_vm_memory_high_watermark", "absolute", "1MB"); err != nil {
		return err
	}

	pause(ctx, f.hold)

	_, err := w.broker.Control(context.WithoutCancel(ctx), "set_vm_memory_high_watermark", "absolute", "1GB")

	return err
}

// consumersToPause are the consumers that an operator pauses.
func consumersToPause() []string {
	return []string{
		wire.Consumers["payments.requested"], wire.Consumers["orders.created"], wire.Consumers["notifications.email"], wire.Consumers["user.updated"],
		wire.Consumers["orders.completed"], wire.Consumers["notifications.webhook"],
	}
}
