package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/cmd/proof/replica"
	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/cmd/proof/wire"
)

// patience is how long a step waits for the broker or the service to make progress.
const patience = 3 * time.Minute

// products is the number of products that the orders are for.
const products = 10

// run is one run with one broker.
type run struct {
	options

	db     *pgxpool.Pool
	random *rand.Rand
	server *server.Broker
	fleet  *replica.Fleet
	report *report
	began  time.Time

	broker wire.Broker
	sent   []outgoing
	// sentAt is when orders, by name, and messages about users, by id, were first sent at
	// a steady rate.
	sentAt map[string]time.Time
	killed int

	// Only on Kafka.
	kafka   *wire.Kafka
	offsets *wire.Offsets
	// Only on RabbitMQ. unacked describes acknowledgements that were not recorded.
	rabbitmq *wire.RabbitMQ
	unacked  []string
	moments  int
}

func (r *run) sayf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %4.0fs  %s\n", r.kind, time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// prepare migrates the database, starts the first replicas and connects to the broker.
func (r *run) prepare(ctx context.Context) (err error) {
	if _, err := r.command(ctx, r.fleet.Program, "migrate", "up"); err != nil {
		return err
	}

	// One order in five finds no stock.
	if _, err := r.db.Exec(ctx, `INSERT INTO stock (product_id, supplied, available)
		SELECT 'soak_' || i, $1, $1 FROM generate_series(0, $2 - 1) AS i`, r.orders*8/10/products, products); err != nil {
		return err
	}

	first := r.replicas
	if r.kind == "rabbitmq" {
		first = 1 // a queue with several consumers does not keep order
	}

	if err := r.fleet.Start(ctx, first); err != nil {
		return err
	}

	switch r.kind {
	case "kafka":
		r.kafka, err = wire.OpenKafka(ctx, r.address)
		r.broker, r.offsets = r.kafka, &wire.Offsets{Kafka: r.kafka, DB: r.db}
	case "rabbitmq":
		r.rabbitmq, err = wire.OpenRabbitMQ(r.server)
		r.broker = r.rabbitmq
	case "embedded":
		r.broker = wire.Embedded{DB: r.db}
	default:
		err = fmt.Errorf("broker %q, expected embedded, kafka or rabbitmq", r.kind)
	}

	return err
}

// command runs a command of one of the service's programs and returns its output.
func (r *run) command(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = r.fleet.Environment

	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}

	return string(out), err
}

// all runs all phases and checks.
func (r *run) all(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	watching, done := context.WithCancel(ctx)

	if r.offsets != nil {
		work.Go(func() error { return r.offsets.Watch(watching) })
	}

	work.Go(func() error {
		defer done()

		switch {
		case r.previous != "":
			return r.upgrade(ctx)
		case r.kafka != nil:
			return r.onKafka(ctx)
		case r.rabbitmq != nil:
			return r.onRabbitMQ(ctx)
		default:
			return errors.New("proof soak needs -broker kafka or rabbitmq")
		}
	})

	if err := work.Wait(); err != nil {
		return err
	}

	return r.check(context.WithoutCancel(ctx))
}

func (r *run) onKafka(ctx context.Context) error {
	load := newLoad("soak", sizes{orders: r.orders, users: r.users, updates: r.updates, products: products, early: true}, r.random)

	if err := r.disturbed(ctx, anonymous(load), r.kills); err != nil {
		return err
	}

	if err := r.settle(ctx); err != nil {
		return err
	}

	if err := r.restart(ctx); err != nil {
		return err
	}

	return r.finish(ctx)
}

// onRabbitMQ runs a single replica for the first half of the load: when that is killed,
// what RabbitMQ no longer has can be compared with what is recorded.
func (r *run) onRabbitMQ(ctx context.Context) error {
	half := sizes{orders: r.orders / 2, users: r.users / 2, updates: r.updates, products: products, early: true}

	if err := r.disturbed(ctx, newLoad("alone", half, r.random), r.kills/2); err != nil {
		return err
	}

	if err := r.settle(ctx); err != nil {
		return err
	}

	if err := r.fleet.Start(ctx, r.replicas-1); err != nil {
		return err
	}

	r.sayf("%d replicas from now on", r.replicas)

	half.orders, half.users = r.orders-half.orders, r.users-half.users

	if err := r.disturbed(ctx, newLoad("soak", half, r.random), r.kills-r.kills/2); err != nil {
		return err
	}

	if err := r.settle(ctx); err != nil {
		return err
	}

	if err := r.restart(ctx); err != nil {
		return err
	}

	return r.finish(ctx)
}

// disturbed sends a load while killing replicas and forcing rebalances.
func (r *run) disturbed(ctx context.Context, load []outgoing, kills int) error {
	// First decide how many replicas each round kills, so that the load can be spread
	// over all rounds. Each kills one or two.
	var rounds []int

	for left := kills; left > 0; left -= rounds[len(rounds)-1] {
		rounds = append(rounds, min(1+r.random.IntN(min(2, len(r.fleet.Running))), left))
	}

	r.sayf("sending %s messages in %d rounds", grouped(len(load)), len(rounds))

	for i, victims := range rounds {
		chunk := load[len(load)*i/len(rounds) : len(load)*(i+1)/len(rounds)]
		if err := r.round(ctx, chunk, victims); err != nil {
			return err
		}
	}

	return nil
}

// round sends a part of the load in two halves. While the first half is being applied,
// it forces a rebalance. During the second half, it kills replicas.
func (r *run) round(ctx context.Context, chunk []outgoing, victims int) (err error) {
	var how string

	if err := r.amid(ctx, chunk[:len(chunk)/2], func() (err error) {
		how, err = r.broker.Rebalance(ctx, r.random)

		return err
	}); err != nil {
		return err
	}

	if err := r.amid(ctx, chunk[len(chunk)/2:], func() error {
		for range victims {
			r.fleet.Kill(r.random.IntN(len(r.fleet.Running)))
			r.killed++
		}

		applied, err := r.applied(ctx)
		r.sayf("kill %d of %d with %s of %s applied; before, %s", r.killed, r.kills, grouped(applied), grouped(expect(r.sent).units()), how)

		return err
	}); err != nil {
		return err
	}

	return errors.Join(r.compareTotals(ctx), r.fleet.Start(ctx, victims))
}

// amid sends messages, and calls disturb once some of them have been applied.
func (r *run) amid(ctx context.Context, list []outgoing, disturb func() error) error {
	before, err := r.applied(ctx) // keys of earlier rounds may still be waiting
	if err != nil {
		return err
	}

	added := expect(list).units()
	r.sent = append(r.sent, list...)

	var sending errgroup.Group

	sending.Go(func() error { return r.broker.Publish(ctx, messages(list)) })

	err = r.reach(ctx, before+int(0.6*r.random.Float64()*float64(added)))
	if err == nil {
		err = disturb()
	}

	return errors.Join(err, sending.Wait())
}

// compareTotals compares what RabbitMQ no longer has with what is recorded, while no
// replica is running: a message that is not recorded must still be in its queue.
func (r *run) compareTotals(ctx context.Context) error {
	if r.rabbitmq == nil || len(r.fleet.Running) > 0 {
		return nil
	}

	r.moments++

	for topic, ids := range expect(r.sent).ids {
		ready, err := r.rabbitmq.Abandoned(ctx, topic)
		if err != nil {
			return err
		}

		open, err := wire.Unrecorded(ctx, r.db, wire.Consumers[topic], ids)
		if err != nil {
			return err
		}

		if len(open) > ready {
			r.unacked = append(r.unacked, fmt.Sprintf("after kill %d, %d messages on %s were not recorded, and %d were in the queue", r.killed, len(open), topic, ready))
		}
	}

	return nil
}

// publishSteadily publishes at the rate of the run until stop is called, which waits until
// everything that was sent is applied. stop returns an error if the load had already ended.
func (r *run) publishSteadily(ctx context.Context, load []outgoing) (stop func() error) {
	halt, stopped, sent := make(chan struct{}), make(chan error, 1), 0

	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()

		var err error

		for ; err == nil && sent < len(load); <-tick.C {
			select {
			case <-halt:
				stopped <- nil

				return
			default:
			}

			next := min(sent+max(1, r.rate/20), len(load))
			r.note(load[sent:next])
			err = r.broker.Publish(ctx, messages(load[sent:next]))
			sent = next
		}

		stopped <- err
	}()

	return func() error {
		close(halt)

		if err := <-stopped; err != nil {
			return err
		}

		if sent == len(load) {
			return errors.New("the load ended before the replicas were replaced: lower -replicas, or raise -rate")
		}

		r.sent = append(r.sent, load[:sent]...)

		return r.settle(ctx)
	}
}

// note remembers when messages are sent.
func (r *run) note(list []outgoing) {
	now := time.Now()

	for _, o := range list {
		if !o.repeated {
			r.sentAt[o.name()] = now
		}
	}
}

// restart restarts one replica after the other, as an orchestrator does, under a steady
// load, and measures how long partitions or queues were not consumed.
func (r *run) restart(ctx context.Context) error {
	load := newLoad("rolled", sizes{orders: r.rate * 60, users: 40, updates: r.rate * 60 / 40, products: products}, r.random)

	begin, err := r.ends()
	if err != nil {
		return err
	}

	r.sayf("rolling restart at %d messages a second", r.rate)

	stop := r.publishSteadily(ctx, load)

	for i := range r.replicas {
		if err := errors.Join(r.pause(ctx, brief), r.fleet.Stop(0), r.fleet.Start(ctx, 1)); err != nil {
			return err
		}

		r.sayf("replica %d of %d restarted", i+1, r.replicas)
	}

	if err := r.pause(ctx, brief); err != nil {
		return err
	}

	if err := stop(); err != nil {
		return err
	}

	if r.kafka == nil {
		return r.longest(ctx, byQueue(load, r.sentAt))
	}

	return r.gaps(ctx, begin)
}

// ends returns the offset after the last record of each consumed partition. There are
// none without Kafka.
func (r *run) ends() (map[wire.Place]int64, error) {
	all := map[wire.Place]int64{}
	if r.kafka == nil {
		return all, nil
	}

	for topic := range wire.Consumers {
		ends, err := r.kafka.Ends(topic)
		if err != nil {
			return nil, err
		}

		maps.Copy(all, ends)
	}

	return all, nil
}

// gaps checks the longest gap of a partition since the offsets in begin.
func (r *run) gaps(ctx context.Context, begin map[wire.Place]int64) error {
	all := map[wire.Place][]wire.Record{}

	for topic := range wire.Consumers {
		ends, err := r.kafka.Ends(topic)
		if err != nil {
			return err
		}

		for p, end := range ends {
			list, err := r.kafka.Records(ctx, p, begin[p], end)
			if err != nil {
				return err
			}

			if len(list) > 0 {
				all[p] = list
			}
		}
	}

	return r.longest(ctx, all)
}

// longest checks the longest gap of the partitions or queues that the messages were on.
func (r *run) longest(ctx context.Context, all map[wire.Place][]wire.Record) error {
	var (
		longest time.Duration
		where   wire.Place
		slow    []string
	)

	for p, list := range all {
		applied, err := applications(ctx, r.db, list)
		if err != nil {
			return err
		}

		gap := longestGap(applied)
		if gap > longest {
			longest, where = gap, p
		}

		if gap > maxGap {
			slow = append(slow, fmt.Sprintf("%s: %.2f s", p, gap.Seconds()))
		}
	}

	r.report.that(fmt.Sprintf("rolling restart: longest gap %.2f s (%s), expected less than %s", longest.Seconds(), where, maxGap), slow)

	return nil
}

// brief is the pause between two restarts.
const brief = 2 * time.Second

// pause lets the load run for a moment, as an orchestrator does between two restarts.
func (r *run) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// applied returns the number of orders and messages about users that have been applied.
func (r *run) applied(ctx context.Context) (n int, err error) {
	err = r.db.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM orders WHERE status IN `+ended+`) + (SELECT count(*) FROM events WHERE stream LIKE 'user-%')`).Scan(&n)

	return n, err
}

// reach waits until applied returns at least goal.
func (r *run) reach(ctx context.Context, goal int) error {
	return until(ctx, fmt.Sprintf("%d applied orders and updates", goal), func() (bool, error) {
		n, err := r.applied(ctx)

		return n >= goal, err
	})
}

// settle waits until everything that was sent is applied, and nothing is left anywhere.
func (r *run) settle(ctx context.Context) error {
	goal := expect(r.sent).units()
	r.sayf("waiting until %s orders and messages of users are applied", grouped(goal))

	if err := r.reach(ctx, goal); err != nil {
		return err
	}

	return until(ctx, "an empty outbox and acknowledged topics", func() (bool, error) {
		var left int
		if err := r.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM failed_keys)`).Scan(&left); err != nil || left > 0 {
			return false, err
		}

		behind, err := r.broker.Backlog(ctx)

		return behind == 0, err
	})
}

// finish drains all replicas, then starts and drains one more: redeliveries must change
// nothing.
func (r *run) finish(ctx context.Context) error {
	if err := r.settle(ctx); err != nil {
		return err
	}

	for len(r.fleet.Running) > 0 {
		if err := r.fleet.Stop(0); err != nil {
			return err
		}
	}

	if err := r.fleet.Start(ctx, 1); err != nil {
		return err
	}

	return errors.Join(r.settle(ctx), r.fleet.Stop(0))
}

// check runs all checks after the run.
func (r *run) check(ctx context.Context) error {
	want := expect(r.sent)

	if r.offsets != nil {
		if err := r.offsets.Sample(ctx); err != nil {
			return err
		}

		unknown, err := r.kafka.Unknown()
		if err != nil {
			return err
		}

		r.report.that(fmt.Sprintf("no committed offset passed a message in hand: %s records in %s samples", grouped(r.offsets.Records), grouped(r.offsets.Samples)),
			append(r.offsets.Passed, unknown...))
	} else if r.rabbitmq != nil {
		r.report.that(fmt.Sprintf("no message was acknowledged before it was recorded, at %d moments without a replica", r.moments), r.unacked)
	}

	if err := errors.Join(r.checkEmpty(ctx), checkLoad(ctx, r.db, want, r.report), checkDatabase(ctx, r.db, r.report), r.checkTopics(ctx, want)); err != nil {
		return err
	}

	var died []string
	if n := r.fleet.Died.Load(); n > 0 {
		died = append(died, fmt.Sprintf("%d replicas", n))
	}

	r.report.that("no replica ended on its own", died)

	log, err := os.ReadFile(r.log)
	if err != nil {
		return err
	}

	r.report.that("no personal data is in the log", leaks(string(log)))

	return r.summarise(ctx)
}

// checkEmpty checks that the broker has nothing left, with no replica running.
func (r *run) checkEmpty(ctx context.Context) error {
	var left []string

	behind, err := r.broker.Backlog(ctx)
	if err != nil {
		return err
	}

	if behind > 0 {
		left = append(left, fmt.Sprintf("%d messages", behind))
	}

	if r.rabbitmq != nil {
		for topic := range wire.Consumers {
			if _, err := r.rabbitmq.Abandoned(ctx, topic); err != nil {
				return err
			}
		}
	}

	r.report.that("everything on consumed topics is acknowledged", left)

	return nil
}

// checkTopics compares the published results with the database. The embedded broker keeps
// none.
func (r *run) checkTopics(ctx context.Context, want expected) error {
	if r.kind == "embedded" {
		return nil
	}

	updated, err := r.broker.Published(ctx, "user.profile.updated")
	if err != nil {
		return err
	}

	r.report.that("the updates of each user are on user.profile.updated in order", steps(want.histories, updated))

	rejected, err := r.broker.Published(ctx, "orders.rejected")
	if err != nil {
		return err
	}

	got, err := ordersOn(rejected)
	if err != nil {
		return err
	}

	failed, err := lines(ctx, r.db, `SELECT id FROM orders WHERE status IN ('inventory_unavailable', 'payment_failed')`)
	if err != nil {
		return err
	}

	r.report.that("orders.rejected has the rejected orders, and no others", differences(failed, got))

	if r.kafka == nil {
		return nil // a consumer empties orders.completed
	}

	done, err := r.broker.Published(ctx, "orders.completed")
	if err != nil {
		return err
	}

	if got, err = ordersOn(done); err != nil {
		return err
	}

	completed, err := lines(ctx, r.db, `SELECT id FROM orders WHERE status = 'completed'`)
	if err != nil {
		return err
	}

	r.report.that("orders.completed has the completed orders, and no others", differences(completed, got))

	return nil
}

func (r *run) summarise(ctx context.Context) error {
	totals, err := lines(ctx, r.db, `SELECT count(*) || ' ' || status FROM orders GROUP BY status ORDER BY status`)
	if err != nil {
		return err
	}

	r.sayf("%s messages sent, %d replicas killed, %d started; orders: %s; seed %d",
		grouped(len(r.sent)), r.killed, r.fleet.Started, strings.Join(totals, ", "), r.seed)

	return nil
}

// until polls a condition for at most patience.
func until(ctx context.Context, what string, condition func() (bool, error)) error {
	return server.Until(ctx, what, patience, condition)
}
