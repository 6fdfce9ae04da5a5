package operate

import (
	"context"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// Trace returns a message's conversation as trees.
func (o *Operator) Trace(ctx context.Context, id string) ([]*trace.Message, error) {
	parsed, err := uuid.Parse(id)
	if err != nil {
		return nil, event.Errorf(event.Invalid, "%q is not a message id, expected a UUID", id)
	}

	roots, err := trace.Find(ctx, o.Pool, parsed)
	o.nameTopics(roots)

	return roots, err
}

// nameTopics fills in the topics of messages for which the inbox has only the
// consumer. If the consumer no longer exists, its name replaces the topic.
func (o *Operator) nameTopics(messages []*trace.Message) {
	for _, m := range messages {
		if m.Topic == "" {
			m.Topic = m.Consumer

			for _, route := range o.Router.Routes() {
				if route.Consumer == m.Consumer {
					m.Topic = route.Topic
				}
			}
		}

		o.nameTopics(m.Caused)
	}
}
