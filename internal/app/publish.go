package app

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Check returns the payload's key, and the error with which a consumer of topic would
// reject the payload.
func (s *Service) Check(topic string, payload []byte) (key string, err error) {
	known := false

	for _, route := range s.Router.Routes() {
		if route.Topic != topic {
			continue
		}

		if key, err = route.Check(payload); err != nil {
			return key, err
		}

		known = true
	}

	if !known {
		return "", event.UnknownName("topic", topic, s.Operator.Topics())
	}

	return key, nil
}

// Publish appends messages to the outbox. They are published in this order per key.
func (s *Service) Publish(ctx context.Context, messages []event.Message) error {
	err := postgres.InTx(ctx, s.Pool, func(tx pgx.Tx) error {
		return outbox.AppendMessages(ctx, tx, messages)
	})
	if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}

	// Otherwise relays in other processes would wait for their next poll.
	_, err = s.Pool.Exec(ctx, `SELECT pg_notify($1, '')`, outbox.Channel)
	if err != nil {
		return fmt.Errorf("notifying relays: %w", err)
	}

	return nil
}
