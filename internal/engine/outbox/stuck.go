package outbox

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Stuck is a topic that a broker refuses to take.
type Stuck struct {
	Topic string `json:"topic"`
	// Broker is empty for the default broker.
	Broker string    `json:"broker,omitempty"`
	Since  time.Time `json:"since"`
	Why    string    `json:"why"`
}

// stuck tracks the topics with a key that was refused many times and of which nothing
// was confirmed since.
type stuck struct {
	any atomic.Bool // spares the lock of each confirmed message

	mu     sync.Mutex
	topics map[string]Stuck
}

func (s *stuck) add(topic string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.topics == nil {
		s.topics = map[string]Stuck{}
	}

	known, was := s.topics[topic]
	if !was {
		known = Stuck{Topic: topic, Since: time.Now().UTC()}
	}

	known.Why = scrub.Text(err.Error())
	s.topics[topic] = known
	s.any.Store(true)
}

func (s *stuck) remove(topic string) {
	if !s.any.Load() {
		return
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	delete(s.topics, topic)
	s.any.Store(len(s.topics) > 0)
}

// Stuck returns the topics that brokers refuse to take, by name.
func (r *Relay) Stuck() (list []Stuck) {
	r.mu.Lock()
	defer r.mu.Unlock()

	for _, l := range r.links {
		l.stuck.mu.Lock()

		for _, s := range l.stuck.topics {
			s.Broker = l.target.Name
			list = append(list, s)
		}

		l.stuck.mu.Unlock()
	}

	slices.SortFunc(list, func(a, b Stuck) int { return strings.Compare(a.Topic, b.Topic) })

	return list
}
