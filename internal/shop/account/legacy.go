package account

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Fields is a message of user.events, whatever its form.
type Fields map[string]json.RawMessage

// legacyNames are names of the old format with those of today.
var legacyNames = map[string]string{
	"userId":     "user_id",
	"userName":   "name",
	"userEmail":  "email",
	"userAction": "action",
}

// Transform is the first step of the pipeline: it gives fields of the old
// format the names of today, and actions such as "createUser" their short
// form. A field that stands there under both names is left as it is, for
// Validate to tell. The argument is not changed.
func Transform(old Fields) Fields {
	fields := maps.Clone(old)

	for legacy, name := range legacyNames {
		value, there := fields[legacy]
		if _, both := fields[name]; !there || both {
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

// Validate is the second step: what every action requires.
func (f Fields) Validate() error {
	var errs []error

	for legacy, name := range legacyNames {
		if _, both := f[legacy]; both {
			errs = append(errs, fmt.Errorf("%s: stands beside %s, expected one of them", legacy, name))
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
	value, there := f[name]
	if !there {
		return "", nil
	}

	var text *string
	if json.Unmarshal(value, &text) != nil || text == nil {
		return "", fmt.Errorf("%s: is no text, expected a JSON string", name)
	}

	return *text, nil
}

// Process is the third step: the message as one of today, a UserCreated or a
// UserUpdated. It wants fields that were transformed and are valid. Fields may
// stand at the top or under "user" and "updates".
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
		updates, err := merged[Updates](f, "updates")
		if err != nil {
			return nil, err
		}

		payload = UserUpdated{UserID: id, Updates: updates}
	default:
		return nil, fmt.Errorf("action: is %q, expected %s or %s", clip(action), actionCreate, actionUpdate)
	}

	return payload, payload.Validate()
}

// merged decodes the fields at the top together with those of the object in
// inner, which win.
func merged[T any](f Fields, inner string) (T, error) {
	var result T

	fields := maps.Clone(f)
	delete(fields, "user_id")
	delete(fields, "action")
	delete(fields, inner)

	if value, there := f[inner]; there {
		var nested Fields
		if err := json.Unmarshal(value, &nested); err != nil || nested == nil {
			return result, fmt.Errorf("%s: is no object, expected a JSON object", inner)
		}

		maps.Copy(fields, nested)
	}

	data, err := json.Marshal(fields)
	if err != nil {
		return result, fmt.Errorf("%s: %w", inner, err)
	}

	return result, event.Unmarshal(data, &result)
}

func clip(s string) string {
	const limit = 60
	if utf8.RuneCountInString(s) <= limit {
		return s
	}

	return string([]rune(s)[:limit]) + "..."
}

// LegacyEvent is a message of user.events after the pipeline.
type LegacyEvent struct {
	fields  Fields
	payload event.Payload
}

// UnmarshalJSON transforms what it reads.
func (l *LegacyEvent) UnmarshalJSON(data []byte) error {
	var old Fields
	if err := json.Unmarshal(data, &old); err != nil || old == nil {
		return errors.New("is no object, expected a JSON object")
	}

	l.fields = Transform(old)
	if l.fields.Validate() == nil {
		l.payload, _ = l.fields.Process() // Validate tells what is wrong
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

// Validate implements event.Payload.
func (l LegacyEvent) Validate() error {
	if err := l.fields.Validate(); err != nil {
		return err
	}

	_, err := l.fields.Process()

	return err
}
