package operate

import (
	"encoding/json"
	"strconv"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// Hidden replaces anything that may be personal data, for those who must not see it.
const Hidden = "(hidden from viewers)"

// MaskEntry removes from a failed message anything that may be personal data: the content
// of messages on topics that may have personal data, and errors, which quote content. Keys
// stay, because they are ids.
func (o *Operator) MaskEntry(e failed.Entry) failed.Entry {
	if !o.Router.Personal(e.Topic) {
		return e
	}

	if e.Error != "" {
		e.Error = e.Cause
	}

	e.Headers = event.Headers{}

	if e.Payload != nil {
		e.Payload = event.Content(Hidden)
	}

	if e.Edited != nil {
		e.Edited = event.Content(Hidden)
	}

	return e
}

// MaskGroup replaces the error of a group, which quotes content, by its cause, and hides the
// note, in which an operator may name a person.
func (o *Operator) MaskGroup(g failed.Group) failed.Group {
	if o.Router.Personal(g.Topic) {
		g.Error = g.Cause
	}

	if g.Note != "" {
		g.Note = Hidden
	}

	return g
}

// MaskTrees removes the details of a conversation, which quote messages.
func MaskTrees(list []*trace.Message) {
	for _, m := range list {
		if m.Detail != "" {
			m.Detail = Hidden
		}

		MaskTrees(m.Caused)
	}
}

// MaskAction removes an action's content, details and reason, in which an operator may
// name a person.
func MaskAction(a activity.Action) activity.Action {
	a.Payload = nil

	if a.Why != "" {
		a.Why = Hidden
	}

	if a.Detail != "" {
		a.Detail = Hidden
	}

	return a
}

// MaskConsumer removes the reason for a pause, in which an operator may name a person.
func MaskConsumer(c Consumer) Consumer {
	if c.Pause == nil || c.Pause.Why == "" {
		return c
	}

	pause := *c.Pause
	pause.Why, c.Pause = Hidden, &pause

	if c.State == Paused {
		c.Why = Hidden
	}

	return c
}

// MaskEvents removes the bodies of events. Like the content of messages, they may
// contain free text, such as the reason for a cancellation.
func MaskEvents(list []eventstore.Event) {
	for i := range list {
		list[i].Data = json.RawMessage(strconv.Quote(Hidden))
	}
}
