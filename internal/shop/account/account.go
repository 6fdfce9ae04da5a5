// Package account handles messages about users: it creates and updates users, translates
// messages in the old format and notifies users of changes. It is the one place where
// users and notifications meet.
package account

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/user"
)

// Accounts handles messages about users.
type Accounts struct {
	users *user.Service
}

// New returns the handlers.
func New(users *user.Service) *Accounts { return &Accounts{users: users} }

// Create creates users and welcomes them. It accepts a user who already exists
// with the same profile and rejects one who exists with a different profile.
func (a *Accounts) Create(ctx context.Context, tx pgx.Tx, events []event.Event[UserCreated]) ([]event.Outgoing, error) {
	return apply(ctx, a, tx, events, func(p UserCreated) event.Payload { return p })
}

// Update updates users and notifies them. An update of a user who does not exist awaits
// the user's creation, and becomes a miss if it waits too long.
func (a *Accounts) Update(ctx context.Context, tx pgx.Tx, events []event.Event[UserUpdated]) ([]event.Outgoing, error) {
	return apply(ctx, a, tx, events, func(p UserUpdated) event.Payload { return p })
}

// Legacy handles messages in the old format.
func (a *Accounts) Legacy(ctx context.Context, tx pgx.Tx, events []event.Event[LegacyEvent]) ([]event.Outgoing, error) {
	return apply(ctx, a, tx, events, func(p LegacyEvent) event.Payload { return p.payload })
}

// apply applies a batch of messages, each of which is a UserCreated or a
// UserUpdated.
func apply[P event.Payload](ctx context.Context, a *Accounts, tx pgx.Tx, events []event.Event[P], payload func(P) event.Payload) ([]event.Outgoing, error) {
	var all, created []string

	for _, e := range events {
		all = append(all, e.AggregateID())

		if _, isCreate := payload(e.Payload).(UserCreated); isCreate {
			created = append(created, e.AggregateID())
		}
	}

	session, err := a.users.Open(ctx, tx, all, created)
	if err != nil {
		return nil, err
	}

	var (
		outgoing []event.Outgoing
		rejected = event.RejectSome{}
	)

	for i, e := range events {
		var caused []event.Outgoing

		switch p := payload(e.Payload).(type) {
		case UserCreated:
			caused, err = create(session, e.Meta, p.User)
		case UserUpdated:
			caused, err = update(session, e.Meta, p)
		}

		_, rejection := errors.AsType[*event.RejectError](err)
		_, early := errors.AsType[*event.EarlyError](err)

		switch {
		case rejection || early:
			rejected[i] = err

			continue
		case err != nil:
			return nil, err
		}

		outgoing = append(outgoing, caused...)
	}

	if err := rejected.Err(); err != nil {
		return nil, err
	}

	return outgoing, session.Save(ctx)
}

func create(session *user.Session, meta event.Meta, u NewUser) ([]event.Outgoing, error) {
	events, err := session.User(u.ID).Create(user.Profile{Name: u.Name, Email: u.Email, Properties: u.Properties})

	if err != nil || len(events) == 0 {
		return nil, err
	}

	return []event.Outgoing{meta.Then(notification.Requested{
		UserID: u.ID, Content: "Welcome " + u.Name + "!",
	})}, session.Record(u.ID, meta.ID, events)
}

func update(session *user.Session, meta event.Meta, p UserUpdated) ([]event.Outgoing, error) {
	u := session.User(p.UserID)
	if !u.Exists() || meta.Ahead {
		return nil, miss(session, meta, p.UserID)
	}

	events := u.Update(p.Updates)
	if len(events) == 0 {
		return nil, nil
	}

	changes := user.Changes(events)

	return []event.Outgoing{
		meta.Then(ProfileUpdated{UserID: u.ID, Changes: changes}),
		meta.Then(notification.Requested{
			UserID: u.ID, Content: "Your profile was updated: " + strings.Join(changes.Names(), ", "),
		}),
	}, session.Record(u.ID, meta.ID, events)
}

// creations are the topics on which users are created.
var creations = []string{TopicUserCreated, TopicUserEvents}

// miss records an update of a user who does not exist, unless the message that creates
// the user may still arrive.
func miss(session *user.Session, meta event.Meta, id string) error {
	if meta.Ahead || !meta.Overdue && !session.User(id).Erased {
		return event.Await(fmt.Errorf("user_id: there is no user %s yet", id), creations...)
	}

	session.Miss(id, meta.ID)

	return nil
}

// NewDirectory returns a lookup of e-mail addresses for notifications.
func NewDirectory(users *user.Service) notification.Directory {
	return notification.Directory{Emails: users.Emails, Creations: creations}
}

// Projections returns the projections of users.
func Projections() []eventstore.Projection { return []eventstore.Projection{user.Projection()} }
