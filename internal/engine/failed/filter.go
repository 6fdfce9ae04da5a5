package failed

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Filter selects entries. The zero value selects all; every field that is set
// narrows it down.
type Filter struct {
	IDs        []int64
	Group      string
	Topic      string
	Consumer   string
	Reason     event.Reason
	Key        string
	MessageID  uuid.UUID
	State      State
	Resolution Resolution
	// Since and Until bound the time at which a message failed last:
	// Since <= t < Until.
	Since, Until time.Time
	// Before and After bound the id, both exclusive: the cursor of a page.
	Before, After int64
	// Revision selects an entry only if nobody has changed it since.
	Revision int
}

// Selective reports whether f leaves anything out, apart from what its state, its
// resolution and the cursor of a page leave out.
func (f Filter) Selective() bool {
	return f.IDs != nil || f.Group != "" || f.Topic != "" || f.Consumer != "" || f.Reason != "" || f.Key != "" ||
		f.MessageID != uuid.Nil || !f.Since.IsZero() || !f.Until.IsZero()
}

// where returns the condition for f, which is never NULL, and its arguments,
// which follow args.
func (f Filter) where(args ...any) (string, []any) {
	var conditions []string

	add := func(condition string, value any) {
		args = append(args, value)
		conditions = append(conditions, fmt.Sprintf(condition, len(args)))
	}

	for _, c := range []struct{ condition, value string }{
		{"group_id = $%d", f.Group},
		{"topic = $%d", f.Topic},
		{"consumer = $%d", f.Consumer},
		{"reason = $%d", string(f.Reason)},
		{"resolution IS NOT DISTINCT FROM $%d", string(f.Resolution)},
		{"(hashtextextended(key, 0) = hashtextextended($%[1]d, 0) AND key = $%[1]d)", f.Key},
	} {
		if c.value != "" {
			add(c.condition, event.Text(c.value))
		}
	}

	switch f.State { // not as arguments, or the plan of any state could not use the index of one
	case "":
	case Waiting:
		conditions = append(conditions, "state = 'waiting' AND waiting_key IS NOT NULL")
	case Stopped:
		conditions = append(conditions, "state = 'stopped'")
	default:
		add("state = $%d", string(f.State))
	}

	if f.IDs != nil {
		add("id = ANY($%d)", f.IDs)
	}

	if f.MessageID != uuid.Nil {
		add("(message_id = $%[1]d OR applied_as IS NOT DISTINCT FROM $%[1]d)", f.MessageID)
	}

	if !f.Since.IsZero() {
		add("last_at >= $%d", f.Since)
	}

	if !f.Until.IsZero() {
		add("last_at < $%d", f.Until)
	}

	if f.Before > 0 {
		add("id < $%d", f.Before)
	}

	if f.After > 0 {
		add("id > $%d", f.After)
	}

	if f.Revision > 0 {
		add("revision = $%d", f.Revision)
	}

	if len(conditions) == 0 {
		return "true", args
	}

	return strings.Join(conditions, " AND "), args
}
