// Package trace finds the messages of a conversation: an incoming message and
// everything that it caused.
package trace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// State is the state of a message.
type State string

// States of a message.
const (
	Applied State = "applied"
	Waiting State = "waiting"
	Parked  State = "parked"
	Blocked State = "blocked"
	Stopped State = "stopped"
	// Published is the last state of a message that is not consumed here.
	Published State = "published"
)

// Message is a message of a conversation.
type Message struct {
	ID        uuid.UUID  `json:"id"`
	Causation *uuid.UUID `json:"causation_id"`
	// Consumer handled the message. If it is empty, Topic is set.
	Consumer string `json:"consumer,omitempty"`
	Topic    string `json:"topic,omitempty"`
	State    State  `json:"state"`
	// At is when the message reached the state, by the database's clock. For a message
	// in the outbox, At is when it is due, or when it was written if it has no due
	// time.
	At time.Time `json:"at"`
	// Detail explains the state, for example why the message is stopped.
	Detail string `json:"detail,omitempty"`
	// Failed is the id of the failed message, or 0 if the message did not fail.
	Failed int64 `json:"failed_id,omitempty"`
	// Caused lists the messages that this one caused, in chronological order.
	Caused []*Message `json:"caused,omitempty"`
}

// Created returns the time in the message's ID. ok is false if the ID has none.
func (m *Message) Created() (at time.Time, ok bool) {
	if m.ID.Version() != 7 {
		return at, false
	}

	return time.Unix(m.ID.Time().UnixTime()), true
}

// Find returns the conversations to which messages belong, as trees. An id may also be a
// correlation ID. A conversation has a single root unless intermediate messages have been
// deleted. Find returns a NotFound error if no id is known.
func Find(ctx context.Context, pool *pgxpool.Pool, ids ...uuid.UUID) ([]*Message, error) {
	correlations, err := postgres.Collect(ctx, pool, pgx.RowTo[uuid.UUID], `
		SELECT coalesce(correlation_id, message_id) FROM inbox WHERE message_id = ANY($1)
		UNION SELECT correlation_id FROM outbox WHERE message_id = ANY($1) OR correlation_id = ANY($1)
		UNION SELECT coalesce(substring(headers ->> $2 FROM $3)::uuid, message_id) FROM failed_messages WHERE message_id = ANY($1)
		UNION SELECT correlation_id FROM published_messages WHERE message_id = ANY($1)
		UNION SELECT correlation_id FROM inbox WHERE correlation_id = ANY($1)`,
		ids, event.HeaderCorrelation, uuidPattern)
	if err != nil {
		return nil, fmt.Errorf("finding conversations: %w", err)
	}

	if len(correlations) == 0 {
		return nil, event.Missing("conversation of", strings.Join(postgres.Column(ids, uuid.UUID.String), ", "))
	}

	messages, err := load(ctx, pool, correlations)
	if err != nil {
		return nil, fmt.Errorf("reading conversations: %w", err)
	}

	return tree(received(messages)), nil
}

const uuidPattern = `^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`

func load(ctx context.Context, db postgres.Querier, correlations []uuid.UUID) ([]*Message, error) {
	return postgres.Collect(ctx, db, func(row pgx.CollectableRow) (*Message, error) {
		m := &Message{}

		return m, row.Scan(&m.ID, &m.Causation, &m.Consumer, &m.Topic, &m.State, &m.At, &m.Detail, &m.Failed)
	}, `
		SELECT message_id, causation_id, consumer, '', 'applied', applied_at, '', 0
		FROM inbox WHERE message_id = ANY($1) OR correlation_id = ANY($1)
		UNION ALL
		SELECT message_id, causation_id, '', topic, 'waiting', coalesce(nullif(available_at, 'infinity'), created_at),
		       CASE WHEN refused IS NOT NULL THEN 'refused by the broker: ' || refused WHEN available_at IS NULL THEN 'to be published' ELSE 'not due yet' END, 0
		FROM outbox WHERE correlation_id = ANY($1)
		UNION ALL
		SELECT message_id, causation_id, '', topic, 'published', published_at, 'not consumed here', 0
		FROM published_messages WHERE correlation_id = ANY($1)
		UNION ALL
		SELECT message_id, substring(headers ->> $3 FROM $4)::uuid, consumer, topic,
		       CASE WHEN state = 'stopped' THEN 'stopped' WHEN error = '' THEN 'blocked' ELSE 'parked' END, coalesce(tried_at, last_at),
		       CASE WHEN state = 'stopped' THEN 'failed message ' || id || ': ' || error
		            WHEN error = '' THEN 'by an earlier message with its key' ELSE 'failed ' || attempts || ' times: ' || error END, id
		FROM failed_messages WHERE state <> 'resolved' AND (message_id = ANY($1) OR lower(headers ->> $2) = ANY($1::text[]))`,
		correlations, event.HeaderCorrelation, event.HeaderCausation, uuidPattern)
}

// received removes messages in the outbox that a consumer has received: the relay deletes
// their rows a little later.
func received(messages []*Message) []*Message {
	consumed := map[uuid.UUID]bool{}

	for _, m := range messages {
		if m.Consumer != "" {
			consumed[m.ID] = true
		}
	}

	return slices.DeleteFunc(messages, func(m *Message) bool { return m.State == Waiting && consumed[m.ID] })
}

// tree arranges the messages by cause. If a message appears twice (stopped and then
// applied), its children are attached to the applied one. Causes come from headers and
// may form a cycle; tree ignores the cause that would close it.
func tree(messages []*Message) []*Message {
	slices.SortStableFunc(messages, func(a, b *Message) int { return a.At.Compare(b.At) })

	byID := make(map[uuid.UUID]*Message, len(messages))

	for _, m := range messages {
		if byID[m.ID] == nil || m.State == Applied {
			byID[m.ID] = m
		}
	}

	var (
		roots  []*Message
		parent = make(map[*Message]*Message, len(messages))
	)

	for _, m := range messages {
		var cause *Message
		if m.Causation != nil {
			cause = byID[*m.Causation]
		}

		for above := cause; above != nil; above = parent[above] {
			if above.ID == m.ID {
				cause = nil

				break
			}
		}

		if cause == nil {
			roots = append(roots, m)

			continue
		}

		parent[m] = cause
		cause.Caused = append(cause.Caused, m)
	}

	return roots
}
