package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/poison"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// ErrHeld returns a message to where it came from because its consumer is
// paused, or what it needs is out of reach. It will be delivered again.
var ErrHeld = errors.New("the consumer is held")

// How long a message is kept in hand while its consumer is held. What comes
// through the outbox is soon returned: the relay, which leaves it in the table
// then, needs its lanes for others. A broker's message may stay, since a broker
// delivers at once what is returned; RabbitMQ wants it back within 30 minutes.
const (
	patienceOutbox = 2 * time.Second
	patienceBroker = 10 * time.Minute
)

func patience(msg *message.Message) time.Duration {
	if strings.HasPrefix(msg.Metadata.Get(event.HeaderOrigin), "embedded:") ||
		strings.HasPrefix(message.HandlerNameFromCtx(msg.Context()), outbox.DirectPrefix) {
		return patienceOutbox
	}

	return patienceBroker
}

// Pause is a consumer that an operator paused.
type Pause struct {
	Consumer string    `json:"consumer"`
	Who      string    `json:"who"`
	Why      string    `json:"why"`
	At       time.Time `json:"paused_at"`
}

// holds knows which consumers are held: paused by an operator, or in need of a
// dependency that is out of reach.
type holds struct {
	mu     sync.Mutex
	paused map[string]Pause
	// resumed is closed, and another takes its place, when paused changes.
	resumed chan struct{}
	// needs are the dependencies that consumers have found out of reach.
	needs map[string]map[string]*breaker.Breaker
}

func newHolds() *holds {
	return &holds{
		paused: map[string]Pause{}, resumed: make(chan struct{}), needs: map[string]map[string]*breaker.Breaker{},
	}
}

// set takes the pauses in force and returns what is new and what is gone.
func (h *holds) set(pauses []Pause) (begun, ended []Pause) {
	h.mu.Lock()
	defer h.mu.Unlock()

	now := make(map[string]Pause, len(pauses))

	for _, p := range pauses {
		now[p.Consumer] = p

		if _, was := h.paused[p.Consumer]; !was {
			begun = append(begun, p)
		}
	}

	for consumer, p := range h.paused {
		if _, is := now[consumer]; !is {
			ended = append(ended, p)
		}
	}

	h.paused = now

	if len(ended) > 0 {
		close(h.resumed)
		h.resumed = make(chan struct{})
	}

	return begun, ended
}

func (h *holds) pausedNow(consumer string) (paused bool, resumed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()

	_, paused = h.paused[consumer]

	return paused, h.resumed
}

func (h *holds) need(consumer string, b *breaker.Breaker) {
	h.mu.Lock()
	defer h.mu.Unlock()

	if h.needs[consumer] == nil {
		h.needs[consumer] = map[string]*breaker.Breaker{}
	}

	h.needs[consumer][b.Name()] = b
}

// Held returns the consumers that take nothing now.
func (r *Router) Held() []string {
	h := r.holds

	h.mu.Lock()
	defer h.mu.Unlock()

	held := make(map[string]bool, len(h.paused))
	for consumer := range h.paused {
		held[consumer] = true
	}

	for consumer, breakers := range h.needs {
		for _, breaker := range breakers {
			if breaker.Open() {
				held[consumer] = true
			}
		}
	}

	return slices.Sorted(maps.Keys(held))
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
	h := r.holds

	h.mu.Lock()
	defer h.mu.Unlock()

	states := make([]State, 0, len(r.routes))

	for _, route := range r.routes {
		state := State{Consumer: route.Consumer, Topic: route.Topic}

		if p, paused := h.paused[route.Consumer]; paused {
			state.Pause = &p
		}

		for name, breaker := range h.needs[route.Consumer] {
			if !breaker.State().Up {
				state.Waits = append(state.Waits, name)
			}
		}

		slices.Sort(state.Waits)
		states = append(states, state)
	}

	return states
}

// hold is the middleware that keeps messages of a paused consumer.
func (r *Router) hold(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		consumer := consumerOf(msg)

		paused, resumed := r.holds.pausedNow(consumer)
		if !paused {
			return next(msg)
		}

		timeout := time.NewTimer(patience(msg))
		defer timeout.Stop()

		for paused {
			select {
			case <-resumed:
				paused, resumed = r.holds.pausedNow(consumer)
			case <-timeout.C:
				return nil, ErrHeld
			case <-r.stopping.Done():
				return nil, ErrStopping
			}
		}

		return next(msg)
	}
}

// await waits until a dependency is worth an attempt, as long as a message may
// be kept. Nothing is needed if it has no name.
func (r *Router) await(msg *message.Message, name string) (*breaker.Attempt, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // a nil attempt is for nothing
	}

	ctx, cancel := context.WithTimeout(r.stopping, patience(msg))
	defer cancel()

	attempt, err := r.dependencies.Get(name).Wait(ctx)

	switch {
	case err == nil:
		return attempt, nil
	case r.stopping.Err() != nil:
		return nil, ErrStopping
	default:
		return nil, ErrHeld
	}
}

// rest pauses after a failure, and ends early when the service stops.
func (r *Router) rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
	case <-r.stopping.Done():
	}
}

// watchEvery is how soon a pause or its end reaches every replica.
const watchEvery = time.Second

// lookTimeout bounds one look.
const lookTimeout = 5 * time.Second

// watch follows what operators decide, until ctx ends. It closes seen when it
// knows for the first time. It also finds out that Postgres is away, or is back,
// while no message does.
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
			attempt.Failed(err) // what was known stays in force
		default:
			attempt.Answered()
			r.logger.Warn("could not read which consumers are paused", slog.Any("error", err))
		}

		if err := r.count(ctx); err != nil && ctx.Err() == nil {
			r.logger.Debug("could not measure what waits", slog.Any("error", err))
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

	begun, ended := r.holds.set(pauses)
	for _, p := range begun {
		r.logger.Warn("consumer is paused", slog.String("consumer", p.Consumer), slog.String("by", p.Who), slog.String("why", p.Why))
	}

	for _, p := range ended {
		r.logger.Info("consumer goes on", slog.String("consumer", p.Consumer))
	}

	return nil
}

// count measures what waits for an operator.
func (r *Router) count(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()

	var waiting, poisoned float64

	err := r.pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM (SELECT FROM parked_keys LIMIT 10000) AS p)::float8,
		       (SELECT count(*) FROM (SELECT FROM poison WHERE resolution IS NULL LIMIT 10000) AS p)::float8`).Scan(&waiting, &poisoned)
	if err != nil {
		return fmt.Errorf("counting what waits: %w", err)
	}

	r.metrics.parkedKeys.Set(waiting)
	r.metrics.poisonOpen.Set(poisoned)

	return nil
}

// Pauses returns the consumers that operators have paused.
func Pauses(ctx context.Context, db postgres.Querier) ([]Pause, error) {
	rows, err := db.Query(ctx, `SELECT consumer, who, why, paused_at FROM paused_consumers ORDER BY consumer`)
	if err != nil {
		return nil, fmt.Errorf("reading paused consumers: %w", err)
	}

	pauses, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Pause])
	if err != nil {
		return nil, fmt.Errorf("reading paused consumers: %w", err)
	}

	return pauses, nil
}

// UnknownConsumerError says that there is no such consumer.
type UnknownConsumerError struct {
	Consumer string
	Known    []string
}

func (e *UnknownConsumerError) Error() string {
	return fmt.Sprintf("there is no consumer %s, expected one of %v", e.Consumer, e.Known)
}

// Pause stops a consumer on all replicas until Resume: within a second they
// take no more of its messages. It reports whether it was running.
func (r *Router) Pause(ctx context.Context, consumer string, by poison.Actor) (changed bool, err error) {
	return r.decide(ctx, consumer, by, "consumer_paused", `
		INSERT INTO paused_consumers (consumer, who, why) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		consumer, by.Who, event.Text(by.Why))
}

// Resume lets a paused consumer go on. It reports whether it was paused.
func (r *Router) Resume(ctx context.Context, consumer string, by poison.Actor) (changed bool, err error) {
	return r.decide(ctx, consumer, by, "consumer_resumed", `DELETE FROM paused_consumers WHERE consumer = $1`, consumer)
}

func (r *Router) decide(ctx context.Context, consumer string, by poison.Actor, action, sql string, args ...any) (changed bool, err error) {
	if _, known := r.topics[consumer]; !known {
		return false, &UnknownConsumerError{Consumer: consumer, Known: slices.Sorted(maps.Keys(r.topics))}
	}

	err = postgres.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql, args...)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}

		changed = true
		_, err = tx.Exec(ctx, `INSERT INTO operations (action, subject, who, why) VALUES ($1, $2, $3, $4)`,
			action, consumer, by.Who, event.Text(by.Why))

		return err
	})
	if err != nil {
		return false, fmt.Errorf("%s: %w", strings.ReplaceAll(action, "_", " "), err)
	}

	return changed, nil
}
