package operate

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Passing is a message seen on a topic.
type Passing struct {
	Topic         string    `json:"topic"`
	MessageID     string    `json:"message_id"`
	CorrelationID string    `json:"correlation_id,omitempty"`
	Key           string    `json:"key"`
	At            time.Time `json:"at"`
	// Origin is where the message was read.
	Origin string `json:"origin,omitempty"`
	// Payload is the payload if it is valid UTF-8; otherwise Base64 is set.
	Payload string `json:"payload,omitempty"`
	Base64  []byte `json:"base64,omitempty"`
}

func passing(topic string, msg *message.Message) Passing {
	p := Passing{
		Topic: topic, MessageID: msg.UUID, CorrelationID: msg.Metadata[event.HeaderCorrelation], Key: event.Text(msg.Metadata[event.HeaderKey]),
		At: time.Now().UTC(), Origin: msg.Metadata[event.HeaderOrigin],
	}

	if utf8.Valid(msg.Payload) {
		p.Payload = string(msg.Payload)
	} else {
		p.Base64 = msg.Payload
	}

	return p
}

// Tail calls fn with each new message on a topic until ctx ends, which is not an
// error. Kafka and RabbitMQ can be read directly. Messages on the embedded broker do
// not leave the service, so Tail asks the service at addr.
func (o *Operator) Tail(ctx context.Context, service Client, topic string, fn func(Passing) error) error {
	var err error

	if tailer, ok := o.Brokers.Of(topic).Driver.(driver.Tailer); ok {
		err = tailer.Tail(ctx, topic, func(msg *message.Message) error { return fn(passing(topic, msg)) })
	} else {
		err = tailService(ctx, service, topic, fn)
	}

	if ctx.Err() != nil {
		return nil //nolint:nilerr // the normal end
	}

	return err
}

// Passed is what a tap recorded after a position.
type Passed struct {
	Messages []Passing `json:"messages" nullable:"false"`
	Next     int64     `json:"next" doc:"Pass this as after to continue."`
	Lost     int64     `json:"lost,omitempty" doc:"Number of messages that were lost because they arrived faster than they were read."`
}

func tailService(ctx context.Context, service Client, topic string, fn func(Passing) error) error {
	after := int64(-1)

	for {
		var passed Passed

		path := fmt.Sprintf("/api/v1/topics/%s/messages?after=%d&wait=%d", url.PathEscape(topic), after, tapWait/time.Second)
		if err := service.ask(ctx, "http.addr", path, tapWait, &passed); err != nil {
			return err
		}

		for _, p := range passed.Messages {
			if err := fn(p); err != nil {
				return err
			}
		}

		after = passed.Next
	}
}

// Limits of a tap.
const (
	tapSize  = 1000             // messages kept per topic
	tapLives = 30 * time.Second // how long a tap lives without a reader
	tapWait  = 10 * time.Second // how long a request waits for messages
)

// Tap keeps the latest messages on topics that have a reader. Without a reader, a
// message costs one atomic read.
type Tap struct {
	active atomic.Bool
	mu     sync.Mutex
	topics map[string]*tapped
}

type tapped struct {
	messages []Passing
	// count is the total number of messages seen.
	count   int64
	until   time.Time
	arrived chan struct{}
}

// Passed records a message on a topic.
func (t *Tap) Passed(topic string, msg *message.Message) {
	if !t.active.Load() {
		return
	}

	t.mu.Lock()
	defer t.mu.Unlock()

	for name, tap := range t.topics {
		if time.Now().After(tap.until) {
			delete(t.topics, name)
		}
	}

	t.active.Store(len(t.topics) > 0)

	tap := t.topics[topic]
	if tap == nil {
		return
	}

	if len(tap.messages) == tapSize {
		tap.messages = slices.Delete(tap.messages, 0, tapSize/10)
	}

	tap.messages = append(tap.messages, passing(topic, msg))
	tap.count++

	close(tap.arrived)
	tap.arrived = make(chan struct{})
}

// After returns the messages on a topic after a position; -1 means from now on. If there
// are none, it waits for the next message.
func (t *Tap) After(ctx context.Context, topic string, after int64, wait time.Duration) Passed {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()

	for {
		passed, arrived := t.after(topic, after)
		if after < 0 || len(passed.Messages) > 0 {
			return passed
		}

		select {
		case <-arrived:
		case <-ctx.Done():
			return passed
		}
	}
}

func (t *Tap) after(topic string, after int64) (Passed, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()

	tap := t.topics[topic]
	if tap == nil {
		if t.topics == nil {
			t.topics = map[string]*tapped{}
		}

		tap = &tapped{arrived: make(chan struct{})}
		t.topics[topic] = tap
	}

	t.active.Store(true)
	tap.until = time.Now().Add(tapLives)

	passed := Passed{Messages: []Passing{}, Next: tap.count}
	if after < 0 {
		return passed, tap.arrived
	}

	wanted := tap.count - min(after, tap.count)
	kept := min(wanted, int64(len(tap.messages)))
	passed.Messages = append(passed.Messages, tap.messages[int64(len(tap.messages))-kept:]...)
	passed.Lost = wanted - kept

	return passed, tap.arrived
}
