package operate

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// CheckPayload returns the payload's key, and the error with which a consumer of topic
// would reject the payload.
func (o *Operator) CheckPayload(topic string, payload []byte) (key string, err error) {
	known := false

	for _, route := range o.Router.Routes() {
		if route.Topic != topic {
			continue
		}

		if key, err = route.Check(payload); err != nil {
			return key, err
		}

		known = true
	}

	if !known {
		return "", event.UnknownName("topic", topic, o.Topics())
	}

	return key, nil
}

// Publish appends messages to the outbox. They are published in this order per key.
func (o *Operator) Publish(ctx context.Context, messages []event.Message) error {
	return o.publish(ctx, messages, func(pgx.Tx) error { return nil })
}

// TryOut publishes one message for an operator, which is recorded, and returns its id. It
// refuses a payload that a consumer would reject.
func (o *Operator) TryOut(ctx context.Context, topic string, payload []byte, by activity.Actor) (uuid.UUID, error) {
	if by.Who == "" {
		return uuid.Nil, activity.ErrNoActor
	}

	key, err := o.CheckPayload(topic, payload)
	if err != nil {
		return uuid.Nil, err
	}

	m := event.Message{ID: event.NewID(), Topic: topic, Key: key, Payload: payload}

	return m.ID, o.publish(ctx, []event.Message{m}, func(tx pgx.Tx) error {
		return activity.Record(ctx, tx, by, activity.Action{
			Action: activity.Published, Subject: topic + " " + event.Text(key), Payload: payload, MessageID: &m.ID,
		})
	})
}

// publish appends messages in one transaction with what record writes.
func (o *Operator) publish(ctx context.Context, messages []event.Message, record func(pgx.Tx) error) error {
	err := postgres.InTx(ctx, o.Pool, func(tx pgx.Tx) error {
		if err := outbox.AppendMessages(ctx, tx, messages); err != nil {
			return err
		}

		return record(tx)
	})
	if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}

	// Otherwise relays in other processes would wait for their next poll.
	if _, err := o.Pool.Exec(ctx, `SELECT pg_notify($1, '')`, outbox.Channel); err != nil {
		return fmt.Errorf("notifying relays: %w", err)
	}

	return nil
}
