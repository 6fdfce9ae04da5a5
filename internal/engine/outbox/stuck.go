package outbox

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// The pause between attempts to publish to a topic that its broker refuses grows from
// minRefusedWait to maxRefusedWait.
const (
	minRefusedWait = time.Second
	maxRefusedWait = 30 * time.Second
)

// Stuck is a topic to which nothing can be published.
type Stuck struct {
	Topic string `json:"topic"`
	// Broker is empty for the default broker.
	Broker string    `json:"broker,omitempty"`
	Since  time.Time `json:"since"`
	Why    string    `json:"why"`
	// Remedy is what the broker's answer calls for, if that is known.
	Remedy string `json:"remedy,omitempty"`

	// refused is true if the broker has refused the topic as a whole. Its rows then stay
	// in the table, and one of them is tried at a time.
	refused bool
	// refusals counts the pauses, and until is the end of the last one. After that, probe
	// is the row that is being tried.
	refusals int
	until    time.Time
	probe    int64
	// tried lists the keys whose rows have been refused: other keys may be accepted.
	tried    []string
	reminder *backoff.Reminder
}

// stuck tracks topics to which nothing can be published: the broker refuses them, or a
// key has failed many times and nothing has been confirmed since.
type stuck struct {
	any atomic.Bool // saves taking the lock for each confirmed message

	mu     sync.Mutex
	topics map[string]Stuck
}

// change applies fn to the entry of a topic, which may be new.
func (s *stuck) change(topic string, err error, fn func(entry *Stuck)) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.topics == nil {
		s.topics = map[string]Stuck{}
	}

	entry, was := s.topics[topic]
	if !was {
		entry = Stuck{Topic: topic, Since: time.Now().UTC(), reminder: &backoff.Reminder{}}
	}

	entry.Why = scrub.Text(err.Error())
	fn(&entry)
	s.topics[topic] = entry
	s.any.Store(true)
}

func (s *stuck) add(topic string, err error) {
	s.change(topic, err, func(entry *Stuck) {
		if refused := refusal(err); refused != nil {
			entry.Remedy = refused.Remedy
		}
	})
}

// refuse records that the broker refuses the topic of a row. report is true if the refusal
// should be logged: the first time, and then at increasing intervals.
func (s *stuck) refuse(r row, refusal *driver.RefusedError) (report bool) {
	s.change(r.Topic, refusal.Err, func(entry *Stuck) {
		entry.Remedy = refusal.Remedy

		if entry.refused && entry.probe != r.Seq {
			return // other lanes were also publishing to the topic
		}

		entry.refused, entry.probe, entry.tried = true, 0, append(entry.tried, r.Key)
		entry.refusals++
		entry.until = time.Now().Add(backoff.Jitter(min(maxRefusedWait, minRefusedWait<<min(entry.refusals-1, 10))))
		report = entry.reminder.Due(refusal.Err)
	})

	return report
}

// refuses reports whether the broker refuses the topic of a row that is not its probe.
func (s *stuck) refuses(r row) bool {
	if !s.any.Load() {
		return false
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	entry := s.topics[r.Topic]

	return entry.refused && entry.probe != r.Seq
}

// refused returns the topics that the broker refuses, sorted by name.
func (s *stuck) refused() (topics []string) {
	if !s.any.Load() {
		return nil
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	for topic, entry := range s.topics {
		if entry.refused {
			topics = append(topics, topic)
		}
	}

	slices.Sort(topics)

	return topics
}

// due reports whether to try a row of a refused topic now, and returns the keys that have
// been tried. The row that is being tried may be lost without an answer, so has reports
// whether the queue still has it.
func (s *stuck) due(topic string, has func(seq int64) bool) (due bool, tried []string) {
	s.mu.Lock()
	entry := s.topics[topic]
	s.mu.Unlock()

	if !entry.refused || time.Now().Before(entry.until) || entry.probe != 0 && has(entry.probe) {
		return false, nil
	}

	return true, entry.tried
}

// probing records that a row of a refused topic is being tried. again is true if all keys
// have been tried.
func (s *stuck) probing(r row, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if entry, found := s.topics[r.Topic]; found {
		entry.probe = r.Seq

		if again {
			entry.tried = nil
		}

		s.topics[r.Topic] = entry
	}
}

// remove forgets a topic. It reports whether the broker had refused the topic.
func (s *stuck) remove(topic string) (refused bool) {
	if !s.any.Load() {
		return false
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	refused = s.topics[topic].refused
	delete(s.topics, topic)
	s.any.Store(len(s.topics) > 0)

	return refused
}

// refuseTopic leaves the rows of a topic that the broker refuses in the table.
func (r *link) refuseTopic(failed row, refusal *driver.RefusedError) {
	if r.stuck.refuse(failed, refusal) {
		r.logger.Warn("the broker is refusing a topic; its messages wait in the outbox",
			slog.String("topic", failed.Topic), slog.Any("error", refusal.Err), slog.String("remedy", refusal.Remedy))
	}

	r.giveBack(failed)
}

// giveBack returns the row of a lane to the table. It nudges the session because a drain
// waits for the lanes.
func (r *link) giveBack(untried row) {
	r.queue.returned(untried)
	r.nudge()
}

// refusal returns the refusal wrapped in a publisher's error, or nil if there is none.
func refusal(err error) *driver.RefusedError {
	refused, _ := errors.AsType[*driver.RefusedError](err)

	return refused
}

// Stuck returns the topics to which nothing can be published, sorted by name.
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
