package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/outbox"
	"github.com/millrace/millrace/internal/postgres"
)

// maxLater caps the growing wait for an effect that may succeed later.
const maxLater = 10 * time.Minute

// putOff puts a message whose effect may succeed later into the outbox, to
// come again under the same id, and acknowledges this delivery. It returns err
// when it is anything but an event.LaterError.
func (r *Router) putOff(msg *message.Message, meta event.Meta, key string, err error) error {
	later, ok := errors.AsType[*event.LaterError](err)
	if !ok {
		return err
	}

	attempt, _ := strconv.Atoi(msg.Metadata.Get(event.HeaderAttempt))
	attempt = max(attempt, 0)

	if attempt >= r.cfg.LaterAttempts {
		return event.RejectAs(event.ReasonFailed, fmt.Errorf("given up after %d attempts: %w", attempt+1, later.Err))
	}

	headers := maps.Clone(event.Headers(msg.Metadata))
	maps.DeleteFunc(headers, func(name, _ string) bool { return strings.HasPrefix(name, event.ReservedPrefix) })
	headers[event.HeaderAttempt] = strconv.Itoa(attempt + 1)

	again := event.Message{
		ID: meta.ID, Topic: message.SubscribeTopicFromCtx(msg.Context()), Key: key, Headers: headers, Payload: msg.Payload,
	}
	wait := max(later.After, min(r.cfg.LaterInterval<<min(attempt, 20), maxLater))

	err = r.untilAvailable(func(ctx context.Context) error {
		return postgres.InTx(ctx, r.pool, func(tx pgx.Tx) error { return outbox.PutOff(ctx, tx, again, meta, wait) })
	})
	if err != nil {
		return err
	}

	r.metrics.putOff.WithLabelValues(message.HandlerNameFromCtx(msg.Context())).Inc()
	r.logger.Warn("message put off", slog.String("consumer", message.HandlerNameFromCtx(msg.Context())),
		slog.String("message_id", msg.UUID), slog.Int("attempt", attempt+1), slog.Duration("wait", wait), slog.Any("error", later.Err))

	return nil
}
