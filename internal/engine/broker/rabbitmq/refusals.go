package rabbitmq

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// refusals has the topics that cannot be subscribed.
type refusals struct {
	mu     sync.Mutex
	topics map[string]driver.Refusal
}

// heard records the result of an attempt to subscribe.
func (r *refusals) heard(topic string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()

	if err == nil {
		delete(r.topics, topic)

		return
	}

	if r.topics == nil {
		r.topics = map[string]driver.Refusal{}
	}

	refusal, known := r.topics[topic]
	if !known {
		refusal = driver.Refusal{Topic: topic, Since: time.Now().UTC()}
	}

	refusal.Err = err
	r.topics[topic] = refusal
}

func (r *refusals) list() (list []driver.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()

	for _, refusal := range r.topics {
		list = append(list, refusal)
	}

	slices.SortFunc(list, func(a, b driver.Refusal) int { return strings.Compare(a.Topic, b.Topic) })

	return list
}
