package main

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// loadShare is the share of its capacity at which a service is loaded.
const loadShare = 0.8

// latency measures the time from publishing an order to the commit that completes it, at
// a steady rate. If rate is 0, it is loadShare of the orders per second that the service can
// do, which are measured first.
func (l *lab) latency(ctx context.Context, kind string, rate int, warmup bool) (figures, error) {
	load := orders(l.skus)

	s, from, err := l.serving(ctx, kind, load)
	if err != nil {
		return nil, err
	}
	defer s.close()
	defer from.close()

	seconds, already := l.seconds, 0
	if warmup {
		seconds = 1
	}

	if rate == 0 {
		var capacity float64

		if capacity, already, err = s.capacity(ctx, from, load, time.Duration(seconds)*time.Second); err != nil {
			return nil, err
		}

		rate = max(1, int(capacity*loadShare))
	}

	n := rate * seconds
	before := s.usage(ctx)

	if err := from.publishSteadily(ctx, n, rate, l.skus); err != nil {
		return nil, err
	}

	if err := s.applied(ctx, load, already+n); err != nil {
		return nil, err
	}

	f := s.usage(ctx).since(before).per(float64(n))
	f[perSecond] = float64(rate)

	if f[peakRSS], err = s.stop(); err != nil {
		return nil, err
	}

	completed, err := s.latencies(ctx, `pg_xact_commit_timestamp(xmin)`)
	if err != nil {
		return nil, err
	}

	// This is the latency up to the first transaction.
	created, err := s.latencies(ctx, `created_at`)
	f[p50Created], f[p50], f[p95], f[p99] = quantile(created, 0.50), quantile(completed, 0.50), quantile(completed, 0.95), quantile(completed, 0.99)

	return f, err
}

// serving returns a site with a running service, and a source of orders for it.
func (l *lab) serving(ctx context.Context, kind string, load load) (*site, *source, error) {
	s, err := l.newSite(ctx, kind)
	if err != nil {
		return nil, nil, err
	}

	if err := load.prepare(ctx, s, 0); err != nil {
		s.close()

		return nil, nil, err
	}

	from, err := s.newSource(ctx)
	if err != nil {
		s.close()

		return nil, nil, err
	}

	if err := s.start(ctx, serveRole, 1); err != nil {
		from.close()
		s.close()

		return nil, nil, err
	}

	return s, from, nil
}

// latencies returns the sorted latencies, in milliseconds, up to the time given by the
// SQL expression until. It ignores the first second, during which connections are opened,
// and orders that were not published at a rate.
func (s *site) latencies(ctx context.Context, until string) ([]float64, error) {
	rows, err := s.pool.Query(ctx, `
		WITH done AS (
			SELECT split_part(id, '-', 1)::float8 / 1e6 AS due, extract(epoch FROM `+until+`)::float8 AS at FROM orders
			WHERE id NOT LIKE 'order-%'
		)
		SELECT (at - due) * 1000 FROM done WHERE due >= (SELECT min(due) + 1 FROM done)`)
	if err != nil {
		return nil, err
	}

	list, err := pgx.CollectRows(rows, pgx.RowTo[float64])
	slices.Sort(list)

	return list, err
}

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}

	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
