package httpapi

import (
	"context"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
)

// masked hides personal data from viewers.
func (e engine) masked(ctx context.Context, found failed.Entry) failed.Entry {
	if Masked(ctx) {
		return e.MaskEntry(found)
	}

	return found
}

func maskedAction(ctx context.Context, a activity.Action) action {
	if Masked(ctx) {
		a = operate.MaskAction(a)
	}

	return actionOf(a)
}

func maskedConsumer(ctx context.Context, c operate.Consumer) operate.Consumer {
	if Masked(ctx) {
		return operate.MaskConsumer(c)
	}

	return c
}

func maskedEvents(ctx context.Context, list []eventstore.Event) {
	if Masked(ctx) {
		operate.MaskEvents(list)
	}
}
