package account

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/notification"
)

// Erasure says what was made unreadable.
type Erasure struct {
	UserID string `json:"erased"`
	// Notifications are those that were recorded as sent.
	Notifications int64 `json:"notifications"`
	// Waiting are messages that will not be published, or tried again, any more.
	Waiting int64 `json:"waiting"`
	// Failed are failed messages that lost their content.
	Failed int64 `json:"failed"`
}

// personal are the topics whose messages tell something about a user.
var personal = []string{TopicUserCreated, TopicUserUpdated, TopicUserEvents, TopicProfileUpdated, notification.Topic}

// Erase makes the personal data of a user unreadable wherever Millrace keeps it,
// or returns a NotFound error. It can be repeated, and then removes what has come
// since, such as a late message that failed because the user was erased. It does
// not reach what was published.
func (a *Accounts) Erase(ctx context.Context, id string, by activity.Actor) (Erasure, error) {
	done := Erasure{UserID: id}

	err := postgres.InTx(ctx, a.pool, func(tx pgx.Tx) (err error) {
		// First, as consumers do: they lock keys that wait, and then users.
		withdrawn, blanked, err := failed.Erase(ctx, tx, id, personal, func(payload []byte) bool { return about(payload) == id })
		if err != nil {
			return err
		}

		if err := a.users.Erase(ctx, tx, id, event.NewID()); err != nil {
			return err
		}

		if done.Notifications, err = a.notifications.Forget(ctx, tx, id); err != nil {
			return err
		}

		if done.Waiting, err = withdraw(ctx, tx, id); err != nil {
			return err
		}

		done.Waiting += withdrawn
		done.Failed = blanked

		return activity.Record(ctx, tx, by, activity.Action{Action: activity.Erased, Subject: "user " + id})
	})

	return done, err
}

// withdraw deletes the messages about a user that wait to be published. A relay
// that has one in hand already publishes it, and its consumer then finds the user
// erased.
func withdraw(ctx context.Context, tx pgx.Tx, id string) (int64, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM outbox WHERE key = $1 AND topic = ANY($2)`, id, personal)
	if err != nil {
		return 0, fmt.Errorf("withdrawing messages about user %s: %w", id, err)
	}

	return tag.RowsAffected(), nil
}

// about returns the id of the user that a message is about, in any of its
// forms, or "". Other fields may be as wrong as they like.
func about(payload []byte) string {
	var message struct {
		User   json.RawMessage
		ID     json.RawMessage `json:"user_id"`
		Legacy json.RawMessage `json:"userId"`
	}
	_ = json.Unmarshal(payload, &message)

	var nested struct{ ID json.RawMessage }
	_ = json.Unmarshal(message.User, &nested)

	for _, candidate := range []json.RawMessage{nested.ID, message.ID, message.Legacy} {
		var id string
		if json.Unmarshal(candidate, &id) == nil && id != "" {
			return id
		}
	}

	return ""
}
