package failed

import (
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
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
	w := postgres.Where{Args: args}

	for _, c := range []struct{ condition, value string }{
		{"group_id = $?", f.Group},
		{"topic = $?", f.Topic},
		{"consumer = $?", f.Consumer},
		{"reason = $?", string(f.Reason)},
		{"resolution IS NOT DISTINCT FROM $?", string(f.Resolution)},
		{"(hashtextextended(key, 0) = hashtextextended($?, 0) AND key = $?)", f.Key},
	} {
		w.And(c.value != "", c.condition, event.Text(c.value))
	}

	// Not as arguments, or the plan of any state could not use the index of one.
	w.And(f.State == Waiting, "state = 'waiting' AND waiting_key IS NOT NULL")
	w.And(f.State == Stopped, "state = 'stopped'")
	w.And(f.State != "" && f.State != Waiting && f.State != Stopped, "state = $?", string(f.State))
	w.And(f.IDs != nil, "id = ANY($?)", f.IDs)
	w.And(f.MessageID != uuid.Nil, "(message_id = $? OR applied_as IS NOT DISTINCT FROM $?)", f.MessageID)
	w.And(!f.Since.IsZero(), "last_at >= $?", f.Since)
	w.And(!f.Until.IsZero(), "last_at < $?", f.Until)
	w.And(f.Before > 0, "id < $?", f.Before)
	w.And(f.After > 0, "id > $?", f.After)
	w.And(f.Revision > 0, "revision = $?", f.Revision)

	return w.String(), w.Args
}
