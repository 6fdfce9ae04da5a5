package main

import (
	"context"
	"fmt"

	"github.com/millracehq/millrace/internal/engine/broker"
)

// scenario is one measurement. Its name consists of its section in the report, a slash,
// and its name in that section.
type scenario struct {
	name string
	run  func(ctx context.Context, warmup bool) (figures, error)
	// main is true for the scenarios that run by default.
	main bool
	// once is true for scenarios that take too long for several rounds.
	once bool
}

// brokers returns the kinds of broker.
func brokers() []string { return []string{broker.Embedded, broker.Kafka, broker.RabbitMQ} }

func (l *lab) scenarios() []scenario {
	all := l.throughputs()
	all = append(all, l.keys()...)
	all = append(all, l.domains()...)
	all = append(all, l.latencies()...)
	all = append(all, l.memories()...)
	all = append(all, l.replicas()...)
	all = append(all, l.tracings()...)

	return append(all, l.olds()...)
}

// throughputs returns scenarios that compare the order process on each broker with other
// implementations of it.
func (l *lab) throughputs() []scenario {
	n, naive := l.orders, l.naiveOrders

	return []scenario{
		{name: "throughput/embedded", main: true, run: l.embedded},
		{name: "throughput/ceiling", main: true, run: l.ceiling},
		l.drain("throughput/kafka", trial{kind: broker.Kafka, load: orders(l.skus), n: n}).asMain(),
		l.drain("throughput/kafka naive", trial{kind: broker.Kafka, load: orders(l.skus), n: naive, role: naiveRole, partitions: naiveInHand}).asMain(),
		l.drain("throughput/kafka FastStream", trial{kind: broker.Kafka, load: guideOrders(l.skus), n: naive, role: fastStreamRole}).asMain(),
		l.drain("throughput/rabbitmq", trial{kind: broker.RabbitMQ, load: orders(l.skus), n: n}).asMain(),
		l.drain("throughput/rabbitmq naive", trial{kind: broker.RabbitMQ, load: orders(l.skus), n: naive, role: naiveRole}).asMain(),
	}
}

// keys returns scenarios that concentrate the load on one partition, key or product.
// "uniform keys" is the baseline for "one key": the same messages with many keys.
func (l *lab) keys() []scenario {
	all := []scenario{
		l.drain("keys/kafka one partition", trial{kind: broker.Kafka, load: orders(l.skus), n: l.orders, partitions: 1}).asMain(),
		l.drain("keys/kafka uniform keys", trial{kind: broker.Kafka, load: updates(l.orders), n: l.orders}).asMain(),
		l.drain("keys/kafka one key", trial{kind: broker.Kafka, load: updates(1), n: l.naiveOrders}).asMain(),
	}

	for _, kind := range brokers() {
		all = append(all, l.drain("keys/"+kind+" one product", trial{kind: kind, load: orders(1), n: l.orders}))
	}

	return all
}

// domains returns scenarios that measure the other domains on Kafka.
func (l *lab) domains() []scenario {
	var all []scenario

	for _, d := range []load{users(), analyticsEvents(), legacyUsers()} {
		for _, s := range []scenario{
			l.drain("domains/"+d.name, trial{kind: broker.Kafka, load: d, n: l.orders}),
			l.drain("domains/"+d.name+" naive", trial{kind: broker.Kafka, load: d, n: l.naiveOrders, role: naiveRole, partitions: naiveInHand}),
		} {
			s.main = d.name != "legacy users"
			all = append(all, s)
		}
	}

	return all
}

// rates returns the orders per second for latency runs.
func rates() []int { return []int{50, 400} }

// latencyAt returns the name of a latency run.
func latencyAt(kind string, rate int) string { return fmt.Sprintf("latency/%s %d per s", kind, rate) }

func (l *lab) latencies() []scenario {
	var all []scenario

	for _, rate := range rates() {
		for _, kind := range brokers() {
			all = append(all, scenario{
				name: latencyAt(kind, rate), main: true,
				run: func(ctx context.Context, warmup bool) (figures, error) { return l.latency(ctx, kind, rate, warmup) },
			})
		}
	}

	for _, kind := range brokers() {
		all = append(all, scenario{
			name: fmt.Sprintf("latency/%s %.0f %% of capacity", kind, 100*loadShare), main: true,
			run: func(ctx context.Context, warmup bool) (figures, error) { return l.latency(ctx, kind, 0, warmup) },
		})
	}

	return all
}

func (l *lab) memories() []scenario {
	var all []scenario

	for _, kind := range brokers() {
		all = append(all, scenario{
			name: "idle/" + kind, main: true,
			run: func(ctx context.Context, _ bool) (figures, error) { return l.idle(ctx, kind) },
		})
	}

	for _, kind := range brokers() {
		all = append(all, scenario{
			name: "steady/" + kind, once: true,
			run: func(ctx context.Context, _ bool) (figures, error) { return l.steadyLoad(ctx, kind) },
		})
	}

	return all
}

func (l *lab) replicas() []scenario {
	var all []scenario

	for _, kind := range brokers() {
		for n := 1; n <= 3; n++ {
			all = append(all, scenario{
				name: fmt.Sprintf("replicas/%s %d", kind, n),
				run:  func(ctx context.Context, warmup bool) (figures, error) { return l.replicated(ctx, kind, n, warmup) },
			})
		}
	}

	return all
}

// tracings returns scenarios that compare a service that exports traces at its default
// sampling rate with one that creates none. In each round, the two scenarios of a pair run
// one after the other.
func (l *lab) tracings() []scenario {
	var all []scenario

	for _, kind := range brokers() {
		t := trial{kind: kind, load: orders(l.skus), n: l.orders}
		off := l.drain("tracing/"+kind+" off", t)
		t.traced = true
		all = append(all, off, l.drain("tracing/"+kind+" on", t))
	}

	return all
}

// olds returns scenarios that measure databases with a lot of old data.
func (l *lab) olds() []scenario {
	var all []scenario

	for _, kind := range []string{broker.Embedded, broker.Kafka} {
		all = append(all,
			l.drain("aged/"+kind+" empty", trial{kind: kind, load: orders(l.skus), n: l.orders}),
			l.drain("aged/"+kind+" aged", trial{kind: kind, load: orders(l.skus), n: l.orders, aged: true}),
		)
	}

	return append(all,
		scenario{name: "rebuild/users", run: l.rebuild, once: true},
		scenario{name: "audit/orders", run: l.audited, once: true},
	)
}

// asMain returns the scenario marked as a main one.
func (s scenario) asMain() scenario {
	s.main = true

	return s
}
