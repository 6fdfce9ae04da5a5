package operate

import (
	"context"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// Trace returns the conversation of a message as trees.
func (o *Operator) Trace(ctx context.Context, id string) ([]*trace.Message, error) {
	parsed, err := messageID(id)
	if err != nil {
		return nil, err
	}

	roots, err := trace.Find(ctx, o.Pool, parsed)
	o.nameTopics(roots)

	return roots, err
}

// nameTopics fills in the topics of what the inbox knows by consumer only.
func (o *Operator) nameTopics(messages []*trace.Message) {
	for _, m := range messages {
		if m.Topic == "" {
			m.Topic = o.topicOf(m.Consumer)
		}

		o.nameTopics(m.Caused)
	}
}

// topicOf returns the topic of a consumer, or its name if it no longer exists.
func (o *Operator) topicOf(consumer string) string {
	for _, route := range o.Router.Routes() {
		if route.Consumer == consumer {
			return route.Topic
		}
	}

	return consumer
}

func messageID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		return id, event.Errorf(event.Invalid, "%q is not a message id, expected a UUID", text)
	}

	return id, nil
}
