package failed

import (
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Filter selects entries. The zero value selects all. An entry must match all fields
// that are set.
type Filter struct {
	IDs       []int64
	Group     string
	Topic     string
	Consumer  string
	Reason    event.Reason
	Key       string
	MessageID uuid.UUID
	// Text is contained in the key, the error or the payload. If Masked is true, it is
	// looked for where no personal data can be: in the key and the cause.
	Text       string
	Masked     bool
	State      State
	Resolution Resolution
	// Since and Until bound the time of the last failure: Since <= t < Until.
	Since, Until time.Time
	// Before and After are exclusive bounds on the ID, for paging.
	Before, After int64
	// Revision selects an entry only if it still has this revision.
	Revision int
}

// Selective reports whether f has any criteria other than its state, resolution and
// page cursor.
func (f Filter) Selective() bool {
	return f.IDs != nil || f.Group != "" || f.Topic != "" || f.Consumer != "" || f.Reason != "" || f.Key != "" || f.Text != "" ||
		f.MessageID != uuid.Nil || !f.Since.IsZero() || !f.Until.IsZero()
}

// where returns the condition for f, which is never NULL, and its arguments appended
// to args.
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

	w.And(f.Text != "" && f.Masked, "(position(lower($?) IN lower(key)) > 0 OR position(lower($?) IN lower(cause)) > 0)", f.Text)
	w.And(f.Text != "" && !f.Masked, "(position(lower($?) IN lower(key)) > 0 OR position(lower($?) IN lower(error)) > 0 "+
		"OR position(convert_to($?, 'UTF8') IN coalesce(edited, payload)) > 0)", f.Text)

	// Use literals here: with parameters, a generic plan could not use the partial
	// indexes.
	w.And(f.State == Waiting, "state = 'waiting' AND failed_key IS NOT NULL")
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
