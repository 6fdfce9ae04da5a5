package operate

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// tracedAtMost is the number of messages about a key whose conversations Trace returns.
const tracedAtMost = 20

// Trace returns conversations as trees: that of a message, by its id or by a correlation
// ID, or those of the newest messages about a key, such as an order or a user.
func (o *Operator) Trace(ctx context.Context, id string) ([]*trace.Message, error) {
	if parsed, err := uuid.Parse(id); err == nil {
		roots, err := trace.Find(ctx, o.Pool, parsed)
		if event.KindOf(err) != event.NotFound { // else it may be the id of an order
			o.nameTopics(roots)

			return roots, err
		}
	}

	messages, err := o.about(ctx, id)
	if err != nil {
		return nil, err
	}

	if len(messages) == 0 {
		return nil, event.Missing("message, stream or failed message with the id or key", id)
	}

	roots, err := trace.Find(ctx, o.Pool, messages...)
	o.nameTopics(roots)

	return roots, err
}

// about returns the newest messages that changed the streams of a key, and its messages
// that failed or have not been published yet.
func (o *Operator) about(ctx context.Context, key string) ([]uuid.UUID, error) {
	messages, err := eventstore.Messages(ctx, o.Pool, postgres.Column(o.Streams, func(name func(string) string) string { return name(key) }), tracedAtMost)
	if err != nil {
		return nil, err
	}

	for _, state := range []failed.State{failed.Stopped, failed.Waiting} {
		entries, err := o.Failed.Summaries(ctx, failed.Filter{Key: key, State: state}, tracedAtMost)
		if err != nil {
			return nil, err
		}

		messages = append(messages, postgres.Column(entries, func(e failed.Entry) uuid.UUID { return e.MessageID })...)
	}

	// The outbox has no index on keys, so a long outbox is not searched completely.
	bounded, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()

	unpublished, err := postgres.Collect(bounded, o.Pool, pgx.RowTo[uuid.UUID], `SELECT message_id FROM outbox WHERE key = $1 ORDER BY seq DESC LIMIT $2`, key, tracedAtMost)
	if err != nil && (bounded.Err() == nil || ctx.Err() != nil) {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}

	return append(messages, unpublished...), nil
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
