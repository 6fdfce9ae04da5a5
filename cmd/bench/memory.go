package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	// idleFor is how long a service is idle before the measurement, and how long the
	// measurement takes.
	idleFor = 5 * time.Second
	// backlog is the maximum number of orders waiting under steady full load.
	backlog = 4000
	// steadySlices is the number of slices of a steady run. Each has its own figures.
	steadySlices = 10
)

// idle measures a service that has started and has nothing to do.
func (l *lab) idle(ctx context.Context, kind string) (figures, error) {
	s, err := l.newSite(ctx, kind)
	if err != nil {
		return nil, err
	}
	defer s.close()

	if err := s.start(ctx, serveRole, 1); err != nil {
		return nil, err
	}

	time.Sleep(idleFor)

	before := s.usage(ctx)

	time.Sleep(idleFor)

	// These are CPU milliseconds per second.
	f := s.usage(ctx).since(before).per(idleFor.Seconds())
	f[rss] = memory(s.replicas[0].pid(), "VmRSS")
	f[peakRSS], err = s.stop()

	return f, err
}

// steadyLoad measures memory and throughput over time while some orders are always
// waiting.
func (l *lab) steadyLoad(ctx context.Context, kind string) (figures, error) {
	load := orders(l.skus)

	s, from, err := l.serving(ctx, kind, load)
	if err != nil {
		return nil, err
	}
	defer s.close()
	defer from.close()

	f := figures{}
	begin, published, done := time.Now(), 0, 0
	before := s.usage(ctx)

	for i := range steadySlices {
		end := begin.Add(l.steady * time.Duration(i+1) / steadySlices)

		slice, err := s.feed(ctx, from, load, &published, end)
		if err != nil {
			return nil, err
		}

		f[rssIn(i)], f[rateIn(i)] = quantile(slice.rss, 0.5), float64(slice.done-done)/(l.steady/steadySlices).Seconds()
		done = slice.done
	}

	maps.Copy(f, s.usage(ctx).since(before).per(float64(done)))

	f[perSecond] = float64(done) / time.Since(begin).Seconds()
	f[peakRSS], err = s.stop()

	return f, err
}

// rssIn and rateIn name the figures of a slice of a steady run.
func rssIn(slice int) string  { return fmt.Sprintf("RSS MB %d/%d", slice+1, steadySlices) }
func rateIn(slice int) string { return fmt.Sprintf("orders/s %d/%d", slice+1, steadySlices) }

// fed is the outcome of a slice of a steady run.
type fed struct {
	rss  []float64 // sorted samples in MB
	done int       // orders completed since the start
}

// feed keeps orders waiting until end.
func (s *site) feed(ctx context.Context, from *source, load load, published *int, end time.Time) (f fed, err error) {
	for time.Now().Before(end) {
		if f.done, err = s.done(ctx, load); err != nil {
			return f, err
		}

		f.rss = append(f.rss, memory(s.replicas[0].pid(), "VmRSS"))

		if more := backlog - (*published - f.done); more >= backlog/8 {
			if err := from.publishAll(ctx, *published, *published+more, load.message); err != nil {
				return f, err
			}

			*published += more
		} else {
			time.Sleep(100 * time.Millisecond)
		}
	}

	slices.Sort(f.rss)
	f.done, err = s.done(ctx, load)

	return f, err
}
