package main

import (
	"context"
	"fmt"
	"time"

	"github.com/millracehq/millrace/internal/engine/broker"
)

// Roles of the process that applies messages.
const (
	serveRole      = "serve"
	naiveRole      = "naive"
	fastStreamRole = "FastStream"
)

// trial is a throughput run.
type trial struct {
	kind string // of the broker
	load load
	n    int // messages
	// role is serveRole if empty.
	role string
	// partitions is the number per Kafka topic; 0 means the default.
	partitions int32
	// aged selects the database with old inbox rows.
	aged bool
	// traced enables the export of traces, at the service's default sampling rate.
	traced bool
}

// drain returns a scenario whose messages are on the topic before the service starts.
// It measures from the first commit to the last.
func (l *lab) drain(name string, t trial) scenario {
	return scenario{name: name, run: func(ctx context.Context, warmup bool) (figures, error) {
		if warmup {
			t := t
			t.n = max(t.n/5, 100)

			return l.try(ctx, t)
		}

		return l.try(ctx, t)
	}}
}

// embedded is the scenario of the embedded broker. The ceiling uses its batch size.
func (l *lab) embedded(ctx context.Context, warmup bool) (figures, error) {
	f, err := l.drain("", trial{kind: brokers()[0], load: orders(l.skus), n: l.orders}).run(ctx, warmup)
	if err == nil {
		l.batch = max(1, int(f[batchSize]))
	}

	return f, err
}

func (l *lab) try(ctx context.Context, t trial) (figures, error) {
	s, err := l.siteOf(ctx, t)
	if err != nil {
		return nil, err
	}
	defer s.close()

	if t.aged {
		release, err := s.hold(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
	}

	if t.partitions > 0 {
		s.cfg.Broker.Kafka.Partitions = t.partitions
	}

	if t.kind == broker.RabbitMQ && t.role == naiveRole {
		if err := s.declareShared(); err != nil {
			return nil, err
		}
	}

	if err := s.preload(ctx, t); err != nil {
		return nil, err
	}

	if t.traced {
		return s.traced(ctx, t)
	}

	return s.drained(ctx, t)
}

// drained measures a service that finds the messages of a trial when it starts.
func (s *site) drained(ctx context.Context, t trial) (figures, error) {
	before := s.usage(ctx)

	if err := s.start(ctx, t.role, 1); err != nil {
		return nil, err
	}

	return s.measure(ctx, t, 0, before)
}

// traced is like drained, but exports traces.
func (s *site) traced(ctx context.Context, t trial) (figures, error) {
	collector, err := newCollector()
	if err != nil {
		return nil, err
	}
	defer collector.server.Close()

	s.traces = collector.endpoint

	f, err := s.drained(ctx, t) // the service has exported its last spans once it has stopped
	if err != nil {
		return nil, err
	}

	f[otlpKB] = float64(collector.received.Load()) / 1024
	if f[otlpKB] == 0 && t.n >= minTraced {
		return nil, fmt.Errorf("%d messages caused no spans, so nothing was measured", t.n)
	}

	return f, nil
}

// minTraced is a number of messages large enough that some are certain to be sampled.
const minTraced = 2000

func (l *lab) siteOf(ctx context.Context, t trial) (*site, error) {
	if !t.aged {
		return l.newSite(ctx, t.kind)
	}

	return l.newAgedSite(ctx, t.kind)
}

// preload publishes the messages of a trial.
func (s *site) preload(ctx context.Context, t trial) error {
	if t.load.prepare != nil {
		if err := t.load.prepare(ctx, s, t.n); err != nil {
			return err
		}
	}

	from, err := s.newSource(ctx)
	if err != nil {
		return err
	}
	defer from.close()

	if err := s.begin(ctx); err != nil {
		return err
	}

	return from.publishAll(ctx, 0, t.n, t.load.message)
}

// begin records the start of the measurement, for the loads.
func (s *site) begin(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, `DROP TABLE IF EXISTS bench_start; CREATE TABLE bench_start AS SELECT clock_timestamp() AS at`)

	return err
}

// measure waits until the messages of a trial are applied in addition to earlier ones,
// and stops the service.
func (s *site) measure(ctx context.Context, t trial, earlier int, before usage) (figures, error) {
	if err := s.applied(ctx, t.load, earlier+t.n); err != nil {
		return nil, err
	}

	used, batch := s.usage(ctx).since(before), s.meanBatch(ctx)

	peak, err := s.stop()
	if err != nil {
		return nil, err
	}

	var elapsed float64
	if err := s.pool.QueryRow(ctx, t.load.elapsed).Scan(&elapsed); err != nil {
		return nil, err
	}

	f := used.per(float64(t.n))
	f[perSecond], f[batchSize], f[peakRSS] = float64(t.n)/elapsed, batch, peak

	return f, nil
}

// patience is how long a run may go without applying a message before it fails.
const patience = time.Minute

// applied waits until n messages are applied.
func (s *site) applied(ctx context.Context, l load, n int) error {
	last, at := 0, time.Now()

	return until(ctx, func() (bool, error) {
		done, err := s.done(ctx, l)
		if done > last {
			last, at = done, time.Now()
		}

		if err == nil && time.Since(at) > patience {
			err = fmt.Errorf("%d of %d messages were applied, and none for %s", done, n, patience)
		}

		return done >= n, err
	})
}

// done returns the number of applied messages.
func (s *site) done(ctx context.Context, l load) (n int, err error) {
	err = s.pool.QueryRow(ctx, l.done).Scan(&n)

	return n, err
}

// replicated measures replicas that are already running when the orders arrive, because a
// replica that joins takes partitions from the others.
func (l *lab) replicated(ctx context.Context, kind string, replicas int, warmup bool) (figures, error) {
	t := trial{kind: kind, load: orders(l.skus), n: l.orders}
	if warmup {
		t.n = max(t.n/5, 100)
	}

	s, err := l.newSite(ctx, kind)
	if err != nil {
		return nil, err
	}
	defer s.close()

	if err := t.load.prepare(ctx, s, t.n); err != nil {
		return nil, err
	}

	from, err := s.newSource(ctx)
	if err != nil {
		return nil, err
	}
	defer from.close()

	if err := s.start(ctx, serveRole, replicas); err != nil {
		return nil, err
	}

	// The first orders open connections, while the replicas divide the work.
	first := max(l.orders/20, 50)

	if err := from.publishAll(ctx, 0, first, t.load.message); err != nil {
		return nil, err
	}

	if err := s.applied(ctx, t.load, first); err != nil {
		return nil, err
	}

	time.Sleep(settle)

	if err := s.begin(ctx); err != nil {
		return nil, err
	}

	before := s.usage(ctx)

	if err := from.publishAll(ctx, first, first+t.n, t.load.message); err != nil {
		return nil, err
	}

	return s.measure(ctx, t, first, before)
}

// settle is how long replicas have to divide partitions and shards.
const settle = 3 * time.Second
