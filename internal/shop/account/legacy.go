package account

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/user"
)

// Fields holds the fields of a message on user.events, old or new.
type Fields map[string]json.RawMessage

// legacyNames maps names in the old format to current ones.
var legacyNames = map[string]string{
	"userId":     "user_id",
	"userName":   "name",
	"userEmail":  "email",
	"userAction": "action",
}

// Transform is the first step of the pipeline: it renames the fields of the old
// format and shortens actions such as "createUser". It leaves a field that is
// present under both names for Validate to report. It does not change old.
func Transform(old Fields) Fields {
	fields := maps.Clone(old)

	for legacy, name := range legacyNames {
		value, present := fields[legacy]
		if _, both := fields[name]; !present || both {
			continue
		}

		fields[name] = value
		delete(fields, legacy)
	}

	var action string
	if json.Unmarshal(fields["action"], &action) == nil {
		short := strings.TrimSuffix(strings.TrimSuffix(action, "User"), "_user")
		if short != "" {
			fields["action"], _ = json.Marshal(strings.ToLower(short[:1]) + short[1:])
		}
	}

	return fields
}

// Actions of user.events.
const (
	actionCreate = "create"
	actionUpdate = "update"
)

// Validate is the second step: it checks what every action requires.
func (f Fields) Validate() error {
	var errs []error

	for legacy, name := range legacyNames {
		if _, both := f[legacy]; both {
			errs = append(errs, fmt.Errorf("%s: cannot be combined with %s, expected one of them", legacy, name))
		}
	}

	if id, err := f.text("user_id"); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, event.CheckID("user_id", id))
	}

	switch action, err := f.text("action"); {
	case err != nil:
		errs = append(errs, err)
	case action == "":
		errs = append(errs, fmt.Errorf("action: is missing, expected %s or %s", actionCreate, actionUpdate))
	}

	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })

	return errors.Join(errs...)
}

// text returns a field that is a string, or "" if it is missing.
func (f Fields) text(name string) (string, error) {
	value, present := f[name]
	if !present {
		return "", nil
	}

	var text *string
	if json.Unmarshal(value, &text) != nil || text == nil {
		return "", fmt.Errorf("%s: is not text, expected a JSON string", name)
	}

	return *text, nil
}

// Process is the third step: it returns the message as a UserCreated or a
// UserUpdated. It expects fields that are transformed and valid. They may be at
// the top level or inside "user" and "updates".
func (f Fields) Process() (event.Payload, error) {
	id, _ := f.text("user_id")
	action, _ := f.text("action")

	var payload event.Payload

	switch action {
	case actionCreate:
		created, err := merged[NewUser](f, "user")
		if err != nil {
			return nil, err
		}

		created.ID = id
		payload = UserCreated{User: created}
	case actionUpdate:
		updates, err := merged[user.Update](f, "updates")
		if err != nil {
			return nil, err
		}

		payload = UserUpdated{UserID: id, Updates: updates}
	default:
		return nil, fmt.Errorf("action: is %.60q, expected %s or %s", action, actionCreate, actionUpdate)
	}

	return payload, payload.Validate()
}

// merged decodes the fields at the top level together with those of the object
// inner, which take precedence.
func merged[T any](f Fields, inner string) (T, error) {
	var result T

	fields := maps.Clone(f)
	delete(fields, "user_id")
	delete(fields, "action")
	delete(fields, inner)

	if value, present := f[inner]; present {
		var nested Fields
		if err := json.Unmarshal(value, &nested); err != nil || nested == nil {
			return result, fmt.Errorf("%s: is not an object, expected a JSON object", inner)
		}

		maps.Copy(fields, nested)
	}

	data, err := json.Marshal(fields)
	if err != nil {
		return result, fmt.Errorf("%s: %w", inner, err)
	}

	return result, event.Unmarshal(data, &result)
}

// LegacyEvent is a message on user.events after the pipeline.
type LegacyEvent struct {
	fields  Fields
	payload event.Payload // a UserCreated or a UserUpdated
	err     error         // why there is no payload, for Validate to report
}

// UnmarshalJSON decodes and transforms the fields.
func (l *LegacyEvent) UnmarshalJSON(data []byte) error {
	var old Fields
	if err := json.Unmarshal(data, &old); err != nil || old == nil {
		return errors.New("is not an object, expected a JSON object")
	}

	l.fields = Transform(old)
	if l.err = l.fields.Validate(); l.err == nil {
		l.payload, l.err = l.fields.Process()
	}

	return nil
}

// MarshalJSON writes the transformed fields.
func (l LegacyEvent) MarshalJSON() ([]byte, error) { return json.Marshal(l.fields) }

// Topic implements event.Payload.
func (LegacyEvent) Topic() string { return TopicUserEvents }

// Key implements event.Payload.
func (l LegacyEvent) Key() string {
	id, _ := l.fields.text("user_id")

	return id
}

// Subject implements event.Personal. It also reads the id under its old name,
// because Transform keeps both names if a message has both.
func (l LegacyEvent) Subject() string {
	old, _ := l.fields.text("userId")

	return cmp.Or(l.Key(), old)
}

// Marks implements event.Personal. It reads every field that may contain a name or
// an address.
func (l LegacyEvent) Marks() []string {
	marks := l.fields.marks()

	for _, inner := range []string{"user", "updates"} {
		var nested Fields
		if json.Unmarshal(l.fields[inner], &nested) == nil {
			marks = append(marks, nested.marks()...)
		}
	}

	return marks
}

// marks returns the fields by which a user can be recognised.
func (f Fields) marks() (marks []string) {
	for _, name := range []string{"name", "email", "userName", "userEmail"} {
		if text, err := f.text(name); err == nil {
			marks = append(marks, text)
		}
	}

	return marks
}

// Validate implements event.Payload.
func (l LegacyEvent) Validate() error { return l.err }
