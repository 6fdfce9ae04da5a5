package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// ErrSuspended returns a message to where it came from because its consumer is
// paused or waits for a dependency. The message will be delivered again.
var ErrSuspended = errors.New("the consumer is paused or waits for a dependency")

// How long a message is kept in hand while its consumer is suspended. A message
// from the outbox is soon returned: the relay, which then leaves it in the table,
// needs its lanes for others. A broker's message may stay, since a broker delivers
// a returned message again at once; RabbitMQ wants it back within 30 minutes.
const (
	patienceOutbox = 2 * time.Second
	patienceBroker = 10 * time.Minute
)

// Pause is a consumer that an operator paused.
type Pause struct {
	Consumer string    `json:"consumer"`
	Who      string    `json:"who"`
	Why      string    `json:"why"`
	At       time.Time `json:"paused_at"`
}

// suspensions knows which consumers are suspended: paused by an operator, or
// waiting for a dependency.
type suspensions struct {
	mu     sync.Mutex
	paused map[string]Pause
	// resumed is closed and replaced when a consumer is resumed.
	resumed chan struct{}
	// needs are the dependencies that consumers have found unavailable.
	needs map[string][]*breaker.Breaker
}

func newSuspensions() *suspensions {
	return &suspensions{resumed: make(chan struct{}), needs: map[string][]*breaker.Breaker{}}
}

// set takes the pauses in force and logs what has changed.
func (s *suspensions) set(pauses []Pause, logger *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()

	before := s.paused
	s.paused = make(map[string]Pause, len(pauses))

	for _, p := range pauses {
		s.paused[p.Consumer] = p

		if _, was := before[p.Consumer]; !was {
			logger.Warn("consumer is paused", slog.String("consumer", p.Consumer), slog.String("by", p.Who), slog.String("why", p.Why))
		}
	}

	for consumer := range before {
		if _, is := s.paused[consumer]; !is {
			logger.Info("consumer is resumed", slog.String("consumer", consumer))
			close(s.resumed)
			s.resumed = make(chan struct{})
		}
	}
}

func (s *suspensions) pausedNow(consumer string) (paused bool, resumed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()

	_, paused = s.paused[consumer]

	return paused, s.resumed
}

func (s *suspensions) need(consumer string, b *breaker.Breaker) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if !slices.Contains(s.needs[consumer], b) {
		s.needs[consumer] = append(s.needs[consumer], b)
	}
}

// Suspended returns the consumers that take nothing now: those that are paused and
// those that wait for a dependency.
func (r *Router) Suspended() []string {
	s := r.suspensions

	s.mu.Lock()
	defer s.mu.Unlock()

	var suspended []string

	for _, route := range r.routes {
		_, paused := s.paused[route.Consumer]
		if paused || slices.ContainsFunc(s.needs[route.Consumer], (*breaker.Breaker).Open) {
			suspended = append(suspended, route.Consumer)
		}
	}

	return suspended
}

// consuming returns the consumers that are not suspended.
func (r *Router) consuming() []string {
	suspended := r.Suspended()

	return slices.DeleteFunc(r.consumers(), func(consumer string) bool { return slices.Contains(suspended, consumer) })
}

// SuspendedTopics returns the topics all of whose consumers are suspended.
func (r *Router) SuspendedTopics() []string {
	suspended := r.Suspended()
	if len(suspended) == 0 {
		return nil
	}

	topics, _ := r.Topics()

	return slices.DeleteFunc(topics, func(topic string) bool {
		return slices.ContainsFunc(r.routesOf(topic), func(route *Route) bool { return !slices.Contains(suspended, route.Consumer) })
	})
}

// State is what a consumer of this process does.
type State struct {
	Consumer string `json:"consumer"`
	Topic    string `json:"topic"`
	// Pause is set while an operator has paused it.
	Pause *Pause `json:"pause,omitempty"`
	// Waits names the dependencies that it waits for.
	Waits []string `json:"waits,omitempty"`
}

// States returns the state of each consumer, in order of the routing table.
func (r *Router) States() []State {
	s := r.suspensions

	s.mu.Lock()
	defer s.mu.Unlock()

	states := make([]State, 0, len(r.routes))

	for _, route := range r.routes {
		state := State{Consumer: route.Consumer, Topic: route.Topic}

		if p, paused := s.paused[route.Consumer]; paused {
			state.Pause = &p
		}

		for _, breaker := range s.needs[route.Consumer] {
			if dependency := breaker.State(); !dependency.Up {
				state.Waits = append(state.Waits, dependency.Name)
			}
		}

		slices.Sort(state.Waits)
		states = append(states, state)
	}

	return states
}

// untilResumed waits while the consumer is paused, as long as the message may be
// kept.
func (r *Router) untilResumed(d *delivery) error {
	paused, resumed := r.suspensions.pausedNow(d.route.Consumer)
	if !paused {
		return nil
	}

	timeout := time.NewTimer(d.patience)
	defer timeout.Stop()

	for paused {
		select {
		case <-resumed:
			paused, resumed = r.suspensions.pausedNow(d.route.Consumer)
		case <-timeout.C:
			return ErrSuspended
		case <-r.stopping.Done():
			return ErrStopping
		}
	}

	return nil
}

// untilWorth waits until a dependency is worth an attempt, as long as the message
// may be kept. Nothing is needed if it has no name.
func (r *Router) untilWorth(d *delivery, dependency string) (*breaker.Attempt, error) {
	if dependency == "" {
		return nil, nil //nolint:nilnil // a nil attempt is for nothing
	}

	ctx, cancel := context.WithTimeout(r.stopping, d.patience)
	defer cancel()

	attempt, err := r.dependencies.Get(dependency).Wait(ctx)

	switch {
	case err == nil:
		return attempt, nil
	case r.stopping.Err() != nil:
		return nil, ErrStopping
	default:
		return nil, ErrSuspended
	}
}

// watchEvery is how soon a pause or its end reaches every replica.
const watchEvery = time.Second

// lookTimeout bounds each of these short statements.
const lookTimeout = 5 * time.Second

// watch follows the pauses until ctx ends. It closes seen once it knows them. It
// also notices that Postgres is unavailable, or available again, while no message
// does.
func (r *Router) watch(ctx context.Context, seen chan<- struct{}) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()

	for {
		attempt, err := r.postgres.Wait(ctx)
		if err != nil {
			return
		}

		switch err := r.look(ctx); {
		case err == nil:
			attempt.Answered()

			if seen != nil {
				close(seen)
				seen = nil
			}
		case ctx.Err() != nil:
			attempt.Abandoned()
		case postgres.IsUnavailable(err):
			attempt.Failed(err) // the known pauses stay in force
		default:
			attempt.Answered()
			r.logger.Warn("could not read which consumers are paused", slog.Any("error", err))
		}

		if err := r.count(ctx); err != nil && ctx.Err() == nil {
			r.logger.Debug("could not count failed messages", slog.Any("error", err))
		}

		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (r *Router) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()

	pauses, err := Pauses(ctx, r.pool)
	if err != nil {
		return err
	}

	r.metrics.paused.Set(float64(len(pauses)))

	r.suspensions.set(pauses, r.logger)

	return nil
}

// count measures the failed messages.
func (r *Router) count(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()

	waiting, stopped, err := r.failed.Count(ctx)
	if err != nil {
		return err
	}

	r.metrics.waitingKeys.Set(float64(waiting))
	r.metrics.stoppedNow.Set(float64(stopped))

	return nil
}

// Pauses returns the consumers that operators have paused.
func Pauses(ctx context.Context, db postgres.Querier) ([]Pause, error) {
	pauses, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Pause],
		`SELECT consumer, who, why, paused_at FROM paused_consumers ORDER BY consumer`)
	if err != nil {
		return nil, fmt.Errorf("reading paused consumers: %w", err)
	}

	return pauses, nil
}

// Pause stops a consumer on all replicas until Resume: within a second they take
// no more of its messages. It reports whether the consumer was running.
func (r *Router) Pause(ctx context.Context, consumer string, by activity.Actor) (changed bool, err error) {
	return r.change(ctx, consumer, by, activity.Paused, `
		INSERT INTO paused_consumers (consumer, who, why) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		consumer, event.Text(by.Who), event.Text(by.Why))
}

// Resume starts a paused consumer again. It reports whether it was paused.
func (r *Router) Resume(ctx context.Context, consumer string, by activity.Actor) (changed bool, err error) {
	return r.change(ctx, consumer, by, activity.Resumed, `DELETE FROM paused_consumers WHERE consumer = $1`, consumer)
}

func (r *Router) change(ctx context.Context, consumer string, by activity.Actor, kind activity.Kind, sql string, args ...any,
) (changed bool, err error) {
	if r.routeOf(consumer) == nil {
		return false, event.UnknownName("consumer", consumer, r.consumers())
	}

	err = postgres.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql, args...)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}

		changed = true

		return activity.Record(ctx, tx, by, activity.Action{Action: kind, Subject: consumer})
	})
	if err != nil {
		return false, fmt.Errorf("recording that consumer %s is %s: %w", consumer, kind, err)
	}

	return changed, nil
}
