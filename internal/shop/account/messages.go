package account

import (
	"errors"
	"fmt"
	"maps"
	"net/mail"
	"slices"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/user"
)

// Topics of users.
const (
	TopicUserCreated    = "user.created"
	TopicUserUpdated    = "user.updated"
	TopicUserEvents     = "user.events"
	TopicProfileUpdated = "user.profile.updated"
)

// Limits on a user.
const (
	maxName       = 200     // characters
	maxEmail      = 254     // bytes: RFC 5321, section 4.5.3.1.3, less the brackets
	maxProperties = 100     // fields
	maxProperty   = 64      // characters in a name
	maxValue      = 8 << 10 // bytes in a value
)

// UserCreated requests a new user.
type UserCreated struct {
	User NewUser `doc:"The new user." json:"user"`
}

// NewUser is the body of UserCreated. All other fields become properties.
type NewUser struct {
	ID         string          `doc:"The id of the user, chosen by the application." format:"id"      json:"id"`
	Name       string          `doc:"The name."                                      format:"name"    json:"name"  maxLength:"200"`
	Email      string          `doc:"The e-mail address."                            format:"address" json:"email" maxLength:"254"`
	Properties user.Properties `json:",embed"`
}

// Topic implements event.Payload.
func (UserCreated) Topic() string { return TopicUserCreated }

// Key implements event.Payload.
func (p UserCreated) Key() string { return p.User.ID }

// Subject implements event.Personal.
func (p UserCreated) Subject() string { return p.User.ID }

// Marks implements event.Personal.
func (p UserCreated) Marks() []string { return []string{p.User.Name, p.User.Email} }

// Validate implements event.Payload.
func (p UserCreated) Validate() error {
	return errors.Join(
		event.CheckID("user.id", p.User.ID),
		event.CheckName("user.name", p.User.Name, maxName),
		checkEmail("user.email", p.User.Email),
		checkProperties("user.", p.User.Properties),
	)
}

// UserUpdated requests changes to fields of a user.
type UserUpdated struct {
	UserID  string      `doc:"The user."                                                                                   format:"id"    json:"user_id"`
	Updates user.Update `doc:"The fields to change, with their new values. Unknown ones are properties; null removes one." json:"updates"`
}

// Topic implements event.Payload.
func (UserUpdated) Topic() string { return TopicUserUpdated }

// Key implements event.Payload.
func (p UserUpdated) Key() string { return p.UserID }

// Subject implements event.Personal.
func (p UserUpdated) Subject() string { return p.UserID }

// Marks implements event.Personal.
func (p UserUpdated) Marks() (marks []string) {
	for _, text := range []*string{p.Updates.Name, p.Updates.Email} {
		if text != nil {
			marks = append(marks, *text)
		}
	}

	return marks
}

// Validate implements event.Payload.
func (p UserUpdated) Validate() error {
	u := p.Updates
	errs := []error{
		event.CheckID("user_id", p.UserID),
		check.That(u.Name != nil || u.Email != nil || len(u.Properties) > 0, "updates: is empty, expected an object with at least one field to change"),
	}

	if u.Name != nil {
		errs = append(errs, event.CheckName("updates.name", *u.Name, maxName))
	}

	if u.Email != nil {
		errs = append(errs, checkEmail("updates.email", *u.Email))
	}

	return errors.Join(append(errs, checkProperties("updates.", u.Properties))...)
}

// ProfileUpdated holds a user's changed fields, with their new values.
type ProfileUpdated struct {
	UserID  string          `doc:"The user."                                            format:"id"    json:"user_id"`
	Changes user.Properties `doc:"The fields that have changed, with their new values." json:"changes"`
}

// Topic implements event.Payload.
func (ProfileUpdated) Topic() string { return TopicProfileUpdated }

// Key implements event.Payload.
func (p ProfileUpdated) Key() string { return p.UserID }

// Subject implements event.Personal.
func (p ProfileUpdated) Subject() string { return p.UserID }

// Marks implements event.Personal.
func (p ProfileUpdated) Marks() []string { return Fields(p.Changes).marks() }

// Validate implements event.Payload.
func (p ProfileUpdated) Validate() error { return event.CheckID("user_id", p.UserID) }

// checkEmail accepts a bare address without a display name or comment. Its error does not
// repeat the address, because errors are logged.
func checkEmail(field, email string) error {
	switch address, err := mail.ParseAddress(email); {
	case email == "":
		return fmt.Errorf("%s: is missing, expected an address such as alice@example.com", field)
	case len(email) > maxEmail:
		return fmt.Errorf("%s: has %d bytes, expected at most %d", field, len(email), maxEmail)
	case err != nil || address.Name != "" || address.Address != email || !event.Printable(email):
		return fmt.Errorf("%s: is not an e-mail address, expected one such as alice@example.com", field)
	}

	return nil
}

// checkProperties reports properties that are too many, too large or not storable
// as jsonb, ordered by name.
func checkProperties(prefix string, properties user.Properties) error {
	if len(properties) > maxProperties {
		return fmt.Errorf("%sproperties: has %d fields beyond name and email, expected at most %d", prefix, len(properties), maxProperties)
	}

	var errs []error

	for _, name := range slices.Sorted(maps.Keys(properties)) {
		value := properties[name]
		unstorable := event.CheckStorable(value)

		switch {
		case event.CheckName("", name, maxProperty) != nil:
			errs = append(errs, fmt.Errorf("%s%+q: is not a property name, expected 1 to %d characters on one line", prefix, event.Shorten(name, maxProperty), maxProperty))
		case len(value) > maxValue:
			errs = append(errs, fmt.Errorf("%s%s: has %d bytes, expected at most %d", prefix, name, len(value), maxValue))
		case unstorable != nil:
			errs = append(errs, fmt.Errorf("%s%s: %w", prefix, name, unstorable))
		}
	}

	return errors.Join(errs...)
}
