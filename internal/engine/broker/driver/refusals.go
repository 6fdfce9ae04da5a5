package driver

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// Refusal is a topic that cannot be subscribed to even though the broker responds.
type Refusal struct {
	Topic string
	Since time.Time
	// Err is a RefusedError if the broker has said why.
	Err error
}

// Remedy returns what an operator can do, or "" if that is unknown.
func (r Refusal) Remedy() string {
	if refused, ok := errors.AsType[*RefusedError](r.Err); ok {
		return refused.Remedy
	}

	return ""
}

// Refusals holds the topics that cannot be subscribed to. The zero value is empty.
type Refusals struct {
	mu     sync.Mutex
	topics map[string]Refusal
}

// Heard records the result of an attempt to subscribe.
func (r *Refusals) Heard(topic string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()

	if err == nil {
		delete(r.topics, topic)

		return
	}

	if r.topics == nil {
		r.topics = map[string]Refusal{}
	}

	refusal, known := r.topics[topic]
	if !known {
		refusal = Refusal{Topic: topic, Since: time.Now().UTC()}
	}

	refusal.Err = err
	r.topics[topic] = refusal
}

// List returns the topics, sorted by name.
func (r *Refusals) List() (list []Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()

	for _, refusal := range r.topics {
		list = append(list, refusal)
	}

	slices.SortFunc(list, func(a, b Refusal) int { return strings.Compare(a.Topic, b.Topic) })

	return list
}
