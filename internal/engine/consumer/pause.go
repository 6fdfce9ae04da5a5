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

// ErrSuspended returns a message because its consumer is paused or waiting for a
// dependency. The message will be redelivered.
var ErrSuspended = errors.New("the consumer is paused or waiting for a dependency")

// Maximum time that a message stays in memory while its consumer is suspended.
// Messages from the outbox are returned soon, because the relay needs its lanes for
// others; it leaves the returned ones in the table. Messages from a broker may stay
// longer, because the broker would redeliver them immediately. RabbitMQ requires an
// acknowledgement within 30 minutes.
const (
	maxWaitOutbox = 2 * time.Second
	maxWaitBroker = 10 * time.Minute
)

// Pause is an operator's pause of a consumer.
type Pause struct {
	Consumer string `json:"consumer"`
	// Who and Why are empty where anybody may see the pause; see Anonymous.
	Who string    `json:"who,omitempty"`
	Why string    `json:"why,omitempty"`
	At  time.Time `json:"paused_at"`
	// Until is when the pause ends on its own; nil if it does not.
	Until *time.Time `json:"until,omitempty"`
}

// Anonymous returns the pause without what people have written, which may be personal
// data: the operator's name and the reason.
func (p Pause) Anonymous() Pause {
	p.Who, p.Why = "", ""

	return p
}

// suspensions tracks the suspended consumers: paused by an operator or waiting for a
// dependency.
type suspensions struct {
	mu     sync.Mutex
	paused map[string]Pause
	// resumed is closed and replaced when a consumer is resumed.
	resumed chan struct{}
	// needs holds the dependencies that each consumer has needed while they were
	// unavailable.
	needs map[string][]*breaker.Breaker
}

func newSuspensions() *suspensions {
	return &suspensions{resumed: make(chan struct{}), needs: map[string][]*breaker.Breaker{}}
}

// set replaces the pauses in force and logs the changes.
func (s *suspensions) set(pauses []Pause, logger *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()

	before := s.paused
	s.paused = make(map[string]Pause, len(pauses))

	for _, p := range pauses {
		s.paused[p.Consumer] = p

		if _, was := before[p.Consumer]; !was {
			logger.Warn("consumer paused", slog.String("consumer", p.Consumer), slog.String("by", p.Who)) // without Why, which is free text and may name a person
		}
	}

	for consumer := range before {
		if _, is := s.paused[consumer]; !is {
			logger.Info("consumer resumed", slog.String("consumer", consumer))
			close(s.resumed)
			s.resumed = make(chan struct{})
		}
	}
}

func (s *suspensions) isPaused(consumer string) (paused bool, resumed <-chan struct{}) {
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

// Suspended returns the consumers that are paused or waiting for a dependency.
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

// SuspendedTopics returns the topics whose consumers are all suspended.
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

// awaitResume waits while the consumer is paused, for at most d.maxWait and only until
// the broker takes the message back.
func (r *Router) awaitResume(d *delivery) error {
	paused, resumed := r.suspensions.isPaused(d.route.Consumer)
	if !paused {
		return nil
	}

	timeout := time.NewTimer(d.maxWait)
	defer timeout.Stop()

	for paused {
		select {
		case <-resumed:
			paused, resumed = r.suspensions.isPaused(d.route.Consumer)
		case <-timeout.C:
			return ErrSuspended
		case <-d.session.Done():
			return ErrSuspended
		case <-r.stopping.Done():
			return ErrStopping
		}
	}

	return nil
}

// awaitDependency waits until a dependency may be tried, for at most d.maxWait and only
// until the broker takes the message back. The empty name means no dependency.
func (r *Router) awaitDependency(d *delivery, dependency string) (*breaker.Attempt, error) {
	if dependency == "" {
		return nil, nil //nolint:nilnil // a nil attempt means no dependency
	}

	ctx, cancel := context.WithTimeout(r.stopping, d.maxWait)
	defer cancel()
	defer context.AfterFunc(d.session, cancel)()

	needed := r.dependencies.Get(dependency)
	if !needed.State().Up { // another consumer found it unavailable
		r.suspensions.need(d.route.Consumer, needed)
	}

	attempt, err := needed.Wait(ctx)

	switch {
	case err == nil:
		return attempt, nil
	case r.stopping.Err() != nil:
		return nil, ErrStopping
	default:
		return nil, ErrSuspended
	}
}

// watchInterval is how quickly all replicas notice a pause or resume.
const watchInterval = time.Second

// queryTimeout bounds each short statement.
const queryTimeout = 5 * time.Second

// watch polls the pauses until ctx ends. It closes seen after the first successful
// poll. It also detects whether Postgres is available while there are no messages.
func (r *Router) watch(ctx context.Context, seen chan<- struct{}) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()

	for {
		if r.look(ctx) {
			if seen != nil {
				close(seen)
				seen = nil
			}

			if err := r.refreshAwaited(ctx); err != nil && ctx.Err() == nil {
				r.logger.Debug("could not read the awaited topics", slog.Any("error", err))
			}

			if err := r.count(ctx); err != nil && ctx.Err() == nil {
				r.logger.Debug("could not count failed messages", slog.Any("error", err))
			}
		}

		r.noteStalled()

		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// look reads the pauses unless Postgres is unavailable, and reports whether it succeeded.
func (r *Router) look(ctx context.Context) bool {
	waiting, cancel := context.WithTimeout(ctx, watchInterval)
	defer cancel()

	attempt, err := r.postgres.WaitToRead(waiting)
	if err != nil {
		return false // others found it unavailable
	}

	switch err = r.refreshPauses(ctx); {
	case err == nil:
		attempt.Answered()
	case ctx.Err() != nil:
		attempt.Abandoned()
	case postgres.IsUnavailable(err):
		attempt.Failed(err) // keep the known pauses
		postgres.Renew(r.pool, err)
	default:
		attempt.Answered()
		r.logger.Warn("could not read the paused consumers", slog.Any("error", err))
	}

	return err == nil
}

func (r *Router) refreshPauses(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()

	pauses, over, err := readPauses(ctx, r.pool)
	if err != nil {
		return err
	}

	if over > 0 {
		r.briefly(ctx, "could not delete expired pauses", r.endPauses)
	}

	r.metrics.paused.Set(float64(len(pauses)))

	r.suspensions.set(pauses, r.logger)

	return nil
}

// count updates the gauges of failed messages.
func (r *Router) count(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()

	waiting, stopped, err := r.failed.Count(ctx)
	if err != nil {
		return err
	}

	r.metrics.waitingKeys.Set(float64(waiting))
	r.metrics.stoppedNow.Set(float64(stopped))

	return nil
}

// Pauses returns the consumers paused by operators.
func Pauses(ctx context.Context, db postgres.Querier) ([]Pause, error) {
	pauses, _, err := readPauses(ctx, db)

	return pauses, err
}

// readPauses returns the pauses in force, and the number of expired ones still stored.
func readPauses(ctx context.Context, db postgres.Querier) (pauses []Pause, over int, err error) {
	type stored struct {
		Pause

		Over bool
	}

	list, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[stored], `
		SELECT consumer, who, why, paused_at, until, coalesce(until <= clock_timestamp(), false) FROM paused_consumers ORDER BY consumer`)
	if err != nil {
		return nil, 0, fmt.Errorf("reading paused consumers: %w", err)
	}

	for _, s := range list {
		if s.Over {
			over++
		} else {
			pauses = append(pauses, s.Pause)
		}
	}

	return pauses, over, nil
}

// endPauses deletes expired pauses and records that they have expired.
func (r *Router) endPauses(ctx context.Context) error {
	return postgres.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		ended, err := postgres.Collect(ctx, tx, pgx.RowTo[string],
			`DELETE FROM paused_consumers WHERE until <= clock_timestamp() RETURNING consumer`)
		if err != nil || len(ended) == 0 {
			return err // another replica was faster
		}

		by := activity.Actor{Who: activity.Service, Why: "the pause has expired"}

		return activity.Record(ctx, tx, by, postgres.Column(ended, func(consumer string) activity.Action {
			return activity.Action{Action: activity.Resumed, Subject: consumer}
		})...)
	})
}

// Pause stops a consumer on all replicas until Resume, or for the given time unless it
// is 0. Replicas stop taking its messages within a second. Pausing a paused consumer
// sets when its pause ends. It reports whether anything changed.
func (r *Router) Pause(ctx context.Context, consumer string, lasts time.Duration, by activity.Actor) (changed bool, err error) {
	detail := ""
	if lasts > 0 {
		detail = "for " + lasts.String()
	}

	return r.change(ctx, by, activity.Action{Action: activity.Paused, Subject: consumer, Detail: detail}, `
		INSERT INTO paused_consumers AS p (consumer, who, why, until)
		VALUES ($1, $2, $3, CASE WHEN $4::float8 > 0 THEN clock_timestamp() + $4 * interval '1 second' END)
		ON CONFLICT ON CONSTRAINT paused_consumers_pkey DO UPDATE SET who = EXCLUDED.who, why = EXCLUDED.why, until = EXCLUDED.until,
			paused_at = CASE WHEN p.until <= clock_timestamp() THEN EXCLUDED.paused_at ELSE p.paused_at END
		WHERE $4 > 0 OR p.until IS NOT NULL`,
		consumer, event.Text(by.Who), event.Text(by.Why), lasts.Seconds())
}

// Resume restarts a paused consumer. It reports whether the consumer was paused.
func (r *Router) Resume(ctx context.Context, consumer string, by activity.Actor) (changed bool, err error) {
	return r.change(ctx, by, activity.Action{Action: activity.Resumed, Subject: consumer},
		`DELETE FROM paused_consumers WHERE consumer = $1`, consumer)
}

func (r *Router) change(ctx context.Context, by activity.Actor, action activity.Action, sql string, args ...any) (changed bool, err error) {
	if err := r.Known(action.Subject); err != nil {
		return false, err
	}

	err = postgres.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql, args...)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}

		changed = true

		return activity.Record(ctx, tx, by, action)
	})
	if err != nil {
		return false, fmt.Errorf("recording that consumer %s was %s: %w", action.Subject, action.Action, err)
	}

	return changed, nil
}

// Known returns an Unknown error unless there is a consumer with this name.
func (r *Router) Known(consumer string) error {
	if r.routeOf(consumer) == nil {
		return event.UnknownName("consumer", consumer, r.consumers())
	}

	return nil
}
