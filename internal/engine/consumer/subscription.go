package consumer

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/breaker"
)

// Phase is how far this process has got with subscribing to a topic.
type Phase string

// Phases.
const (
	// NotRunning: the process, such as a command, does not consume.
	NotRunning Phase = "not running"
	// Connecting: the topic's broker has not been reached yet.
	Connecting Phase = "connecting"
	// Subscribed: messages arrive, as far as this process knows.
	Subscribed Phase = "subscribed"
	// Draining: the process is stopping and takes no more messages.
	Draining Phase = "draining"
)

// subscriptions tracks the phases of all topics.
type subscriptions struct {
	mu     sync.Mutex
	phases map[string]Phase
	since  map[string]time.Time
	// sources holds the broker of each subscribed topic.
	sources map[string]Source
}

// enter sets the phase of topics.
func (s *subscriptions) enter(phase Phase, topics ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.phases == nil {
		s.phases, s.since, s.sources = map[string]Phase{}, map[string]time.Time{}, map[string]Source{}
	}

	for _, topic := range topics {
		s.phases[topic], s.since[topic] = phase, time.Now().UTC()
	}
}

// subscribed records that messages on a topic arrive from source.
func (s *subscriptions) subscribed(topic string, source Source) {
	s.enter(Subscribed, topic)

	s.mu.Lock()
	defer s.mu.Unlock()

	s.sources[topic] = source
}

// down returns why messages on a topic are not arriving, or "".
func (s *subscriptions) down(topic string) string {
	s.mu.Lock()
	defer s.mu.Unlock()

	if source := s.sources[topic]; source != nil {
		return source.Down()
	}

	return topic + " is not subscribed yet"
}

// of returns the phase of a topic and when it began.
func (s *subscriptions) of(topic string) (Phase, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()

	return cmp.Or(s.phases[topic], NotRunning), s.since[topic]
}

// State is the state of a consumer in this process.
type State struct {
	Consumer string `json:"consumer"`
	Topic    string `json:"topic"`
	// Phase is the phase of the topic's subscription. It began at Since.
	Phase Phase     `json:"phase"`
	Since time.Time `json:"phase_since"`
	// Pause is set while the consumer is paused by an operator.
	Pause *Pause `json:"pause,omitempty"`
	// Waits lists the dependencies that the consumer is waiting for.
	Waits []breaker.State `json:"waits,omitempty"`
}

// States returns the state of each consumer, in the order of the routing table.
func (r *Router) States() []State {
	s := r.suspensions

	s.mu.Lock()
	defer s.mu.Unlock()

	states := make([]State, 0, len(r.routes))

	for _, route := range r.routes {
		state := State{Consumer: route.Consumer, Topic: route.Topic}
		state.Phase, state.Since = r.topics.of(route.Topic)

		if p, paused := s.paused[route.Consumer]; paused {
			state.Pause = &p
		}

		for _, b := range append([]*breaker.Breaker{r.postgres}, s.needs[route.Consumer]...) {
			if dependency := b.State(); !dependency.Up {
				state.Waits = append(state.Waits, dependency)
			}
		}

		slices.SortFunc(state.Waits, func(a, b breaker.State) int { return strings.Compare(a.Name, b.Name) })
		states = append(states, state)
	}

	return states
}
