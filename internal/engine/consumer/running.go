package consumer

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// stalls holds the latest stall of each topic in this process.
type stalls struct {
	mu     sync.Mutex
	latest map[string]stall
}

// stall is a period during which a topic was not processed.
type stall struct{ began, ended time.Time }

// maxBacklogTime limits how long the backlog after a stall may take.
const maxBacklogTime = time.Hour

// extended returns the stall of a topic that is not being processed.
func (s stall) extended(now time.Time) stall {
	if now.Sub(s.ended) > 2*(watchInterval+queryTimeout) { // the check may take that long
		s.began = now // a new stall
	}

	s.ended = now

	return s
}

// served returns the time at which a stall's backlog counts as processed. The backlog is
// allowed as long as the stall lasted.
func (s stall) served() time.Time { return s.ended.Add(min(s.ended.Sub(s.began), maxBacklogTime)) }

// Stalled returns why this process is not processing the messages on some of the given
// topics: a consumer is paused or waits for a dependency, or the broker is unavailable
// or refuses the topic. It returns "" if all topics are being processed.
func (r *Router) Stalled(topics ...string) string { return r.stalled(r.States(), topics...) }

func (r *Router) stalled(states []State, topics ...string) string {
	var why []string

	for _, topic := range topics {
		if down := r.topics.down(topic); down != "" && !slices.Contains(why, down) {
			why = append(why, down)
		}
	}

	for _, s := range r.relay.Stuck() {
		if slices.Contains(topics, s.Topic) {
			why = append(why, s.Topic+" cannot be published")
		}
	}

	for _, s := range states {
		switch {
		case !slices.Contains(topics, s.Topic):
		case s.Pause != nil:
			why = append(why, s.Consumer+" is paused")
		case len(s.Waits) > 0:
			names := postgres.Column(s.Waits, func(d breaker.State) string { return d.Name })
			why = append(why, s.Consumer+" is waiting for "+strings.Join(names, " and "))
		}
	}

	return strings.Join(why, ", ")
}

// noteStalled records which topics are not being processed.
func (r *Router) noteStalled() {
	topics, _ := r.Topics()
	states := r.States()

	for _, topic := range topics {
		if r.stalled(states, topic) != "" {
			r.stalls.mu.Lock()
			r.stalls.latest[topic] = r.stalls.latest[topic].extended(time.Now())
			r.stalls.mu.Unlock()
		}
	}
}

// servedSince returns the time, to the second, from which no topic counts as having a
// stall's backlog. It may be in the future.
func (r *Router) servedSince(topics []string) (since time.Time) {
	r.stalls.mu.Lock()
	defer r.stalls.mu.Unlock()

	for _, topic := range topics {
		if served := r.stalls.latest[topic].served(); served.After(since) {
			since = served
		}
	}

	return since
}

// NewStalled returns [Router.Stalled].
func NewStalled(r *Router) event.Stalled { return r.Stalled }

// outboxTimeout bounds a search for messages in the outbox, which may be long.
const outboxTimeout = time.Second

// NewUndelivered returns a function that looks for messages in the outbox and among the
// failed messages. All keys count as undelivered if the outbox is too long to search, and
// while the topic is stalled, because a message may be inside a broker.
func NewUndelivered(r *Router) event.Undelivered {
	return func(ctx context.Context, topic string, keys []string) ([]string, error) {
		if r.Stalled(topic) != "" {
			return keys, nil
		}

		consumers := r.consumersOf([]string{topic})

		failed, err := r.failed.Unresolved(ctx, consumers, consumers, keys)
		if err != nil {
			return nil, err
		}

		briefly, cancel := context.WithTimeout(ctx, outboxTimeout)
		defer cancel()

		unpublished, err := outbox.Unpublished(briefly, r.pool, []string{topic}, keys)
		if err != nil && briefly.Err() != nil && ctx.Err() == nil {
			return keys, nil // Postgres is available, but slow to answer
		}

		return append(failed, unpublished...), err
	}
}
