// Package user stores users. A user is an aggregate in the stream user-<id>, and
// its state is the fold of its events. Personal data in the store is sealed under
// a per-user key; erasing a user destroys the key. The table users is a projection
// for lookups.
//
// Messages and notifications about users are in package account.
package user

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
)

// Properties are the fields of a user other than name and e-mail address, as
// JSON.
type Properties map[string]json.RawMessage

// User is the state of a user.
type User struct {
	ID         string     `json:"id"`
	Version    int        `json:"version"`
	Name       string     `json:"name"`
	Email      string     `json:"email"`
	Properties Properties `json:"properties"`
	// Erased means that only the version remains.
	Erased bool `json:"erased"`
}

// Exists reports whether the user has been created and not erased.
func (u User) Exists() bool { return u.Version > 0 && !u.Erased }

// Stream names the stream of the user with this id.
func Stream(id string) string { return streamPrefix + id }

const streamPrefix = "user-"

// Events of the stream user-<id>.
type (
	// Created is the first event of every stream.
	Created struct {
		UserID     string     `json:"user_id"`
		Name       string     `json:"name"`
		Email      string     `json:"email"`
		Properties Properties `json:"properties,omitempty"`
	}
	// EmailUpdated records a new e-mail address.
	EmailUpdated struct {
		UserID   string `json:"user_id"`
		NewEmail string `json:"new_email"`
	}
	// NameUpdated records a new name.
	NameUpdated struct {
		UserID  string `json:"user_id"`
		NewName string `json:"new_name"`
	}
	// PropertiesUpdated records the properties that changed. A null value removes a
	// property.
	PropertiesUpdated struct {
		UserID  string     `json:"user_id"`
		Changed Properties `json:"changed"`
	}
	// Erased records that the personal data in all earlier events is unreadable.
	Erased struct{}
)

// EventType names the type in the store.
func (Created) EventType() string { return "UserCreated" }

// EventType names the type in the store.
func (EmailUpdated) EventType() string { return "UserEmailUpdated" }

// EventType names the type in the store.
func (NameUpdated) EventType() string { return "UserNameUpdated" }

// EventType names the type in the store.
func (PropertiesUpdated) EventType() string { return "UserPropertiesUpdated" }

// EventType names the type in the store.
func (Erased) EventType() string { return "UserErased" }

// types decodes the events of users.
var types = func() eventstore.Types {
	t := eventstore.Types{}
	eventstore.Register[Created](t)
	eventstore.Register[EmailUpdated](t)
	eventstore.Register[NameUpdated](t)
	eventstore.Register[PropertiesUpdated](t)
	eventstore.Register[Erased](t)

	return t
}()

// Apply returns the user after the event.
func (u User) Apply(data eventstore.Data) User {
	switch d := data.(type) {
	case Created:
		u.Name, u.Email, u.Properties = d.Name, d.Email, d.Properties
	case EmailUpdated:
		u.Email = d.NewEmail
	case NameUpdated:
		u.Name = d.NewName
	case PropertiesUpdated:
		u.Properties = maps.Clone(u.Properties)
		if u.Properties == nil {
			u.Properties = Properties{}
		}

		for name, value := range d.Changed {
			if isNull(value) {
				delete(u.Properties, name)
			} else {
				u.Properties[name] = value
			}
		}
	case Erased:
		u = User{ID: u.ID, Version: u.Version, Erased: true}
	}

	u.Version++

	return u
}

// Profile is the data of a new user.
type Profile struct {
	Name       string
	Email      string
	Properties Properties
}

// Update holds the fields to change. Nil means unchanged. Fields other than name
// and e-mail address are properties; null removes one.
type Update struct {
	Name       *string    `doc:"The new name."           format:"name"    json:"name,omitempty"  maxLength:"200"`
	Email      *string    `doc:"The new e-mail address." format:"address" json:"email,omitempty" maxLength:"254"`
	Properties Properties `json:",embed"`
}

// Create returns the event that creates the user, or none if the same user
// already exists. It rejects an id that belongs to an erased user or to one with
// a different profile.
func (u User) Create(p Profile) ([]eventstore.Data, error) {
	switch {
	case u.Erased:
		return nil, event.Reject(fmt.Errorf("user.id: user %s was erased, expected a new id", u.ID))
	case u.Version == 0:
		return []eventstore.Data{Created{UserID: u.ID, Name: p.Name, Email: p.Email, Properties: p.Properties}}, nil
	case u.Name == p.Name && u.Email == p.Email && maps.EqualFunc(u.Properties, p.Properties, same):
		return nil, nil
	default:
		return nil, event.RejectAs(event.ReasonConflict,
			fmt.Errorf("user.id: user %s exists with a different name, e-mail address or properties, expected a new id", u.ID))
	}
}

// Update returns the events that update an existing user. Unchanged fields cause
// none.
func (u User) Update(change Update) []eventstore.Data {
	var events []eventstore.Data

	if change.Email != nil && *change.Email != u.Email {
		events = append(events, EmailUpdated{UserID: u.ID, NewEmail: *change.Email})
	}

	if change.Name != nil && *change.Name != u.Name {
		events = append(events, NameUpdated{UserID: u.ID, NewName: *change.Name})
	}

	changed := Properties{}

	for name, value := range change.Properties {
		old, had := u.Properties[name]
		if !had {
			old = json.RawMessage("null")
		}

		if !same(old, value) {
			changed[name] = value
		}
	}

	if len(changed) > 0 {
		events = append(events, PropertiesUpdated{UserID: u.ID, Changed: changed})
	}

	return events
}

// Changes returns the fields that events change, with their new values.
func Changes(events []eventstore.Data) Properties {
	changes := Properties{}

	for _, data := range events {
		switch d := data.(type) {
		case EmailUpdated:
			changes["email"], _ = json.Marshal(d.NewEmail)
		case NameUpdated:
			changes["name"], _ = json.Marshal(d.NewName)
		case PropertiesUpdated:
			maps.Copy(changes, d.Changed)
		}
	}

	return changes
}

// Names returns the names of the properties, sorted.
func (p Properties) Names() []string { return slices.Sorted(maps.Keys(p)) }

func isNull(value json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(value), []byte("null")) }

// same reports whether two JSON texts are equal apart from white space.
func same(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	if json.Compact(&x, a) != nil || json.Compact(&y, b) != nil {
		return bytes.Equal(a, b)
	}

	return bytes.Equal(x.Bytes(), y.Bytes())
}
