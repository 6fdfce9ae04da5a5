// Package event defines the types that all other packages share: messages, decoded
// events, and the results of handlers.
//
// It does no I/O. It imports only the standard library, a JSON codec, uuid, package
// terminal and, for the signature of Append, pgx.
package event

import (
	"errors"
	"time"

	"github.com/google/uuid"
)

// Payload is the body of an event. A payload type belongs to exactly one topic.
type Payload interface {
	// Topic returns the topic that carries this type.
	Topic() string
	// Key returns the ID of the aggregate that the event concerns. Messages with the
	// same key are applied and published in order.
	Key() string
	// Validate reports all errors in the payload. Each starts with the path of its
	// field ("order.quantity: ...").
	Validate() error
}

// Meta identifies a message and its place in a conversation.
type Meta struct {
	// ID identifies the message: deliveries with the same ID are the same message.
	ID uuid.UUID
	// Correlation is the ID of the message that started the conversation.
	Correlation uuid.UUID
	// Causation is the ID of the message whose handling caused this one, or
	// the zero UUID for the first message of a conversation.
	Causation uuid.UUID
	// Trace is the W3C traceparent for whatever the message causes: the span of its
	// delivery, or the traceparent that the message carries if it is not traced here.
	// TraceState goes with it.
	Trace, TraceState string
	// Overdue is true once the message has waited as long as it may for another one
	// that it depends on; see Await.
	Overdue bool
	// Ahead is true if an earlier message with the key awaits a message on this topic. The
	// handler applies this message only if it is one that others await. Otherwise it
	// returns Await, so that this message does not overtake the earlier one.
	Ahead bool
}

// Event is a decoded and validated message.
type Event[P Payload] struct {
	Meta

	Payload P
}

// Outgoing is an event that a handler publishes. It is appended to the outbox in the
// handler's transaction and published after the commit.
type Outgoing struct {
	Meta

	Payload Payload
	// Delay postpones publication until at least this long after the commit.
	Delay time.Duration
}

// Then returns an event with payload p, caused by e.
func (e Event[P]) Then(p Payload) Outgoing {
	return e.Meta.Then(p)
}

// Then returns an event with payload p, caused by message m.
func (m Meta) Then(p Payload) Outgoing {
	return Outgoing{
		Meta:    Meta{ID: NewID(), Correlation: m.Correlation, Causation: m.ID, Trace: m.Trace, TraceState: m.TraceState},
		Payload: p,
	}
}

// Start returns the first event of a new conversation.
func Start(p Payload) Outgoing {
	id := NewID()

	return Outgoing{Meta: Meta{ID: id, Correlation: id}, Payload: p}
}

// AggregateID returns the payload's key, the ID of the aggregate.
func (e Event[P]) AggregateID() string { return e.Payload.Key() }

// Effected is an event together with the result of its effect.
type Effected[P Payload, R any] struct {
	Event[P]

	// Result is nil if the effect was skipped.
	Result *R
}

// ErrSkip reports that an event needs no effect; see consumer.Effect.
var ErrSkip = errors.New("no effect needed")

// Identity returns the IDs of e.
func (e Event[P]) Identity() Meta { return e.Meta }
