package operate

import (
	"context"
	"fmt"
	"time"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
)

// Batch size and delay for reading all events.
const (
	eventBatch  = 1000
	followEvery = 250 * time.Millisecond
)

// Stream returns the events of a stream, or an error if it has none.
func (o *Operator) Stream(ctx context.Context, name string) ([]eventstore.Event, error) {
	events, err := eventstore.Read(ctx, o.Pool, name)
	if err == nil && len(events) == 0 {
		err = event.Missing("stream", name)
	}

	return events, err
}

// EventPage returns the events in at most limit positions after the given position, and
// the position to continue from.
func (o *Operator) EventPage(ctx context.Context, after int64, limit int) (events []eventstore.Event, next int64, err error) {
	horizon, err := eventstore.Horizon(ctx, o.Pool)
	if err != nil {
		return nil, after, err
	}

	return eventstore.ReadAll(ctx, o.Pool, "", after, horizon, limit)
}

// Events calls fn with each event after a position, in order. With follow it waits
// for more events until ctx ends, which is not an error.
func (o *Operator) Events(ctx context.Context, position int64, follow bool, fn func(eventstore.Event) error) error {
	for {
		horizon, err := eventstore.Horizon(ctx, o.Pool)

		for err == nil && position < horizon {
			position, err = o.eventsUpTo(ctx, position, horizon, fn)
		}

		switch {
		case follow && ctx.Err() != nil:
			return nil //nolint:nilerr // ctx normally ends the loop
		case err != nil || !follow:
			return err
		}

		_ = backoff.Sleep(ctx, followEvery)
	}
}

func (o *Operator) eventsUpTo(ctx context.Context, position, horizon int64, fn func(eventstore.Event) error) (int64, error) {
	events, next, err := eventstore.ReadAll(ctx, o.Pool, "", position, horizon, eventBatch)

	for _, e := range events {
		if err := fn(e); err != nil {
			return position, fmt.Errorf("writing events: %w", err)
		}
	}

	return next, err
}
