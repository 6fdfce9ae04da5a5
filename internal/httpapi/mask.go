package httpapi

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// hidden replaces anything that may be personal data, for those who must not see it.
const hidden = "(hidden from viewers)"

// masked removes from a failed message anything that may be personal data: the content of
// messages on topics that may have personal data, and errors, which quote content. Keys
// stay, because they are ids.
func (e engine) masked(ctx context.Context, found failed.Entry) failed.Entry {
	if !Masked(ctx) || !e.Router.Personal(found.Topic) {
		return found
	}

	if found.Error != "" {
		found.Error = found.Cause
	}

	found.Headers = event.Headers{}

	if found.Payload != nil {
		found.Payload = event.Content(hidden)
	}

	if found.Edited != nil {
		found.Edited = event.Content(hidden)
	}

	return found
}

// maskedTree removes the details of a conversation, which quote messages.
func maskedTree(list []*trace.Message) {
	for _, m := range list {
		if m.Detail != "" {
			m.Detail = hidden
		}

		maskedTree(m.Caused)
	}
}

// maskedAction removes an action's content, details and reason, in which an operator may
// name a person.
func maskedAction(ctx context.Context, a action) action {
	if Masked(ctx) {
		a.Payload = nil

		if a.Why != "" {
			a.Why = hidden
		}

		if a.Detail != "" {
			a.Detail = hidden
		}
	}

	return a
}

// maskedConsumer removes the reason for a pause, in which an operator may name a person.
func maskedConsumer(ctx context.Context, c operate.Consumer) operate.Consumer {
	if !Masked(ctx) || c.Pause == nil || c.Pause.Why == "" {
		return c
	}

	pause := *c.Pause
	pause.Why, c.Pause = hidden, &pause

	if c.State == operate.Paused {
		c.Why = hidden
	}

	return c
}

// maskedEvents removes the bodies of events. Like the content of messages, they may
// contain free text, such as the reason for a cancellation.
func maskedEvents(ctx context.Context, list []eventstore.Event) {
	for i := range list {
		if Masked(ctx) {
			list[i].Data = json.RawMessage(strconv.Quote(hidden))
		}
	}
}
