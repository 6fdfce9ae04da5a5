// Package breaker keeps one breaker for each thing outside that the service
// needs: Postgres, a broker, the payment gateway, a mail server. While one is
// out of reach, what needs it waits, and one attempt at a time finds out
// whether it is back. It decides nothing about messages: nobody's message is at
// fault when a dependency is.
package breaker

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// A breaker opens after this many failures with no success between them. Below
// that each failure is followed by a short pause of its own.
const threshold = 3

// Pauses grow from minPause to maxPause while a dependency stays away.
const (
	minPause = 100 * time.Millisecond
	maxPause = 30 * time.Second
)

// Set is the breakers of a process.
type Set struct {
	logger *slog.Logger
	up     *prometheus.GaugeVec

	mu       sync.Mutex
	breakers map[string]*Breaker
}

// NewSet returns a set without breakers.
func NewSet(logger *slog.Logger, registry *prometheus.Registry) *Set {
	return &Set{
		logger: logger.With(slog.String("component", "dependency")),
		up: promauto.With(registry).NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_dependency_up", Help: "1 while a dependency answers, 0 while what needs it is paused.",
		}, []string{"dependency"}),
		breakers: make(map[string]*Breaker),
	}
}

// Get returns the breaker of the dependency with this name, a new one if it is
// the first to ask.
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

// States returns the state of each dependency, by name.
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

// State is what is known of a dependency.
type State struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
	// Since is when it went away, and Why what it said last; both are empty
	// while it is up.
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why,omitempty"`
	// RetryAt is when the next attempt is due.
	RetryAt *time.Time `json:"retry_at,omitempty"`
}

// Breaker says whether a dependency is worth an attempt.
type Breaker struct {
	name   string
	logger *slog.Logger
	up     prometheus.Gauge

	mu       sync.Mutex
	failures int
	// first and why are of the failures since the last success; until is when
	// the next attempt may begin.
	first, until time.Time
	why          string
	// probing is true while the one attempt of an open breaker is under way.
	probing bool
	// changed is closed, and another takes its place, whenever waiting may be
	// over.
	changed chan struct{}
}

// Name is that of the dependency.
func (b *Breaker) Name() string { return b.name }

// Attempt is leave to use the dependency. Exactly one of Answered, Failed and
// Abandoned is to be called. A nil attempt is for no dependency at all.
type Attempt struct {
	breaker *Breaker
	probe   bool
}

// Dependency names what may be used.
func (a *Attempt) Dependency() string {
	if a == nil {
		return ""
	}

	return a.breaker.name
}

// Wait returns as soon as the dependency is worth an attempt, or with the error
// of ctx. While the breaker is closed that is at once.
func (b *Breaker) Wait(ctx context.Context) (*Attempt, error) {
	for {
		attempt, wait, changed := b.try()
		if attempt != nil {
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

// Open reports whether the dependency is away and not yet worth an attempt.
func (b *Breaker) Open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.failures >= threshold && (b.probing || time.Until(b.until) > 0)
}

// State returns what is known of the dependency.
func (b *Breaker) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()

	if b.failures < threshold {
		return State{Name: b.name, Up: true}
	}

	first, until := b.first.UTC(), b.until.UTC()

	return State{Name: b.name, Since: &first, Why: b.why, RetryAt: &until}
}

// Answered says that the dependency is there, whatever it answered.
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

	if b.failures == 0 {
		return
	}

	if b.failures >= threshold {
		b.up.Set(1)
		b.logger.Info("dependency is back: what needs it goes on", slog.String("dependency", b.name),
			slog.Duration("away_for", time.Since(b.first).Round(time.Millisecond)))
	}

	b.failures, b.why = 0, ""
	b.wake()
}

// Failed says that the dependency could not be used, and returns how long to
// pause before the next attempt.
func (a *Attempt) Failed(err error) time.Duration {
	b := a.breaker

	b.mu.Lock()
	defer b.mu.Unlock()

	// Of many attempts that were under way when it opened, one is enough.
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
	b.why = err.Error()
	pause := jitter(min(maxPause, minPause<<min(b.failures-1, 10)))
	b.until = time.Now().Add(pause)

	if b.failures == threshold {
		b.up.Set(0)
		b.logger.Warn("dependency is unavailable: what needs it is paused until it is back",
			slog.String("dependency", b.name), slog.Any("error", err))
	}

	b.wake()

	return pause
}

// Failed says that the dependency could not be used by somebody who did not
// wait for leave, and returns how long to pause. Waiting for leave to tell would
// take the place of an attempt that finds out whether it is back.
func (b *Breaker) Failed(err error) time.Duration { return (&Attempt{breaker: b}).Failed(err) }

// Abandoned says that the attempt told nothing about the dependency.
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

// jitter spreads d over its upper half, so that replicas do not ask together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }
