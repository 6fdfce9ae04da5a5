// Package breaker provides a circuit breaker for each dependency: Postgres, the
// brokers, the payment gateway, the mail server. While a dependency is unavailable,
// callers wait and a single attempt at a time probes it. The package makes no
// decisions about messages.
package breaker

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// threshold is the number of consecutive failures after which a breaker opens.
const threshold = 3

// The delay between probes grows from minPause to maxPause while a dependency is
// unavailable.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// Set holds the breakers of a process.
type Set struct {
	logger *slog.Logger
	up     *prometheus.GaugeVec

	mu       sync.Mutex
	breakers map[string]*Breaker
}

// NewSet returns an empty set.
func NewSet(logger *slog.Logger, registry *prometheus.Registry) *Set {
	return &Set{
		logger: logger.With(slog.String("component", "dependency")),
		up: promauto.With(registry).NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_dependency_up", Help: "Whether the dependency is available (1) or consumers are waiting for it (0).",
		}, []string{"dependency"}),
		breakers: make(map[string]*Breaker),
	}
}

// Get returns the breaker of a dependency, creating it on first use.
func (s *Set) Get(name string) *Breaker {
	s.mu.Lock()
	defer s.mu.Unlock()

	b, known := s.breakers[name]
	if !known {
		b = &Breaker{name: name, logger: s.logger, up: s.up.WithLabelValues(name), changed: make(chan struct{})}
		b.up.Set(1)
		s.breakers[name] = b
	}

	return b
}

// States returns the state of each dependency, sorted by name.
func (s *Set) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()

	states := make([]State, 0, len(s.breakers))
	for _, b := range s.breakers {
		states = append(states, b.State())
	}

	slices.SortFunc(states, func(a, b State) int { return strings.Compare(a.Name, b.Name) })

	return states
}

// State is the state of a dependency.
type State struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
	// Since is the time of the first failure, and Why is the last error. Both are empty
	// while the dependency is up.
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why,omitempty"`
	// RetryAt is when the next attempt is due.
	RetryAt *time.Time `json:"retry_at,omitempty"`
}

// Breaker controls when a dependency may be used.
type Breaker struct {
	name   string
	logger *slog.Logger
	up     prometheus.Gauge

	mu       sync.Mutex
	failures int
	// first is the time of the first failure since the last success, why is the last
	// error, and until is when the next attempt may start.
	first, until time.Time
	why          string
	// writesFailed is true if an attempt that writes has failed since the last success.
	writesFailed bool
	// probing is true while the single attempt of an open breaker runs.
	probing bool
	// changed is closed and replaced when waiters should check again.
	changed chan struct{}
}

// Attempt is permission to use the dependency once. The holder must call exactly one
// of Answered, Failed and Abandoned. A nil Attempt means that there is no dependency.
type Attempt struct {
	breaker *Breaker
	probe   bool
	// reads is true if the attempt only reads.
	reads bool
}

// Dependency returns the name of the dependency.
func (a *Attempt) Dependency() string {
	if a == nil {
		return ""
	}

	return a.breaker.name
}

// Wait blocks until the dependency may be used or ctx ends. It returns immediately
// while the breaker is closed.
func (b *Breaker) Wait(ctx context.Context) (*Attempt, error) { return b.wait(ctx, false) }

// WaitToRead is Wait for an attempt that only reads. Its success proves nothing about
// writes, for example on a full disk. So once a write has failed, only a successful
// write closes the breaker.
func (b *Breaker) WaitToRead(ctx context.Context) (*Attempt, error) { return b.wait(ctx, true) }

func (b *Breaker) wait(ctx context.Context, reads bool) (*Attempt, error) {
	for {
		attempt, wait, changed := b.try()
		if attempt != nil {
			attempt.reads = reads

			return attempt, nil
		}

		timer := time.NewTimer(wait)

		select {
		case <-timer.C:
		case <-changed:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()

			return nil, ctx.Err()
		}
	}
}

func (b *Breaker) try() (*Attempt, time.Duration, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()

	switch left := time.Until(b.until); {
	case b.failures < threshold:
		return &Attempt{breaker: b}, 0, nil
	case left > 0:
		return nil, left, b.changed
	case b.probing:
		return nil, maxPause, b.changed
	}

	b.probing = true

	return &Attempt{breaker: b, probe: true}, 0, nil
}

// Open reports whether Wait would block.
func (b *Breaker) Open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.failures >= threshold && (b.probing || time.Until(b.until) > 0)
}

// State returns the state of the dependency.
func (b *Breaker) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()

	if b.failures < threshold {
		return State{Name: b.name, Up: true}
	}

	first, until := b.first.UTC(), b.until.UTC()

	return State{Name: b.name, Since: &first, Why: b.why, RetryAt: &until}
}

// Answered reports that the dependency answered, whether or not the call succeeded.
// While the breaker is open, only its probe counts: an earlier attempt may have been
// answered just before the dependency became unavailable.
func (a *Attempt) Answered() {
	if a == nil {
		return
	}

	b := a.breaker

	b.mu.Lock()
	defer b.mu.Unlock()

	if a.probe {
		b.probing = false
	}

	if a.reads && b.writesFailed {
		b.wake() // let a writer try

		return
	}

	if b.failures == 0 || !a.probe && b.failures >= threshold {
		return
	}

	if a.probe {
		b.up.Set(1)
		b.logger.Info("dependency is available again", slog.String("dependency", b.name),
			slog.Duration("unavailable_for", time.Since(b.first).Round(time.Millisecond)))
	}

	b.failures, b.why, b.writesFailed = 0, "", false
	b.wake()
}

// Failed reports that the dependency is unavailable and returns how long to wait
// before the next attempt.
func (a *Attempt) Failed(err error) time.Duration {
	b := a.breaker

	b.mu.Lock()
	defer b.mu.Unlock()

	// Attempts that started before the breaker opened do not extend the delay.
	late := !a.probe && b.failures >= threshold

	if a.probe {
		b.probing = false
	}

	if late {
		return max(time.Until(b.until), 0)
	}

	if b.failures == 0 {
		b.first = time.Now()
	}

	b.failures++
	b.writesFailed = b.writesFailed || !a.reads
	b.why = scrub.Text(err.Error())
	pause := backoff.Jitter(min(maxPause, minPause<<min(b.failures-1, 10)))
	b.until = time.Now().Add(pause)

	if b.failures == threshold {
		b.up.Set(0)
		b.logger.Warn("dependency is unavailable; waiting for it",
			slog.String("dependency", b.name), slog.Any("error", err))
	}

	b.wake()

	return pause
}

// Failed reports a failure from a caller that did not use Wait, and returns how long
// to wait. Calling Wait just to report a failure would block the probe.
func (b *Breaker) Failed(err error) time.Duration { return (&Attempt{breaker: b}).Failed(err) }

// Abandoned reports that the attempt gave no information about the dependency.
func (a *Attempt) Abandoned() {
	if a == nil || !a.probe {
		return
	}

	b := a.breaker

	b.mu.Lock()
	defer b.mu.Unlock()

	b.probing = false
	b.wake()
}

func (b *Breaker) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}
