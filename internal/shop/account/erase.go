package account

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/parked"
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
	// Poisoned are entries of the poison queue that lost their content.
	Poisoned int64 `json:"poisoned"`
}

// personal are the topics whose messages tell something about a user.
var personal = []string{TopicUserCreated, TopicUserUpdated, TopicUserEvents, TopicProfileUpdated, notification.Topic}

// Erase makes the personal data of a user unreadable wherever Millrace keeps
// it, or returns a NotFound error. Doing it again is no mistake: it takes
// away what has come since, such as a late message that was poisoned because
// the user was erased. What was published is beyond its reach.
func (a *Accounts) Erase(ctx context.Context, id string) (Erasure, error) {
	done := Erasure{UserID: id}

	err := postgres.InTx(ctx, a.pool, func(tx pgx.Tx) (err error) {
		// First, as consumers do: they lock keys that wait, and then users.
		withdrawn, err := parked.Withdraw(ctx, tx, id, personal)
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
		done.Poisoned, err = blank(ctx, tx, id)

		return err
	})

	return done, err
}

// withdraw deletes the messages about a user that wait to be published, those
// for one consumer ("@account.create") included. A relay that has one in hand
// already publishes it, and its consumer then finds the user erased.
func withdraw(ctx context.Context, tx pgx.Tx, id string) (int64, error) {
	tag, err := tx.Exec(ctx, `
		DELETE FROM outbox
		WHERE key = $1 AND (topic = ANY($2) OR starts_with(topic, '@account.') OR starts_with(topic, '@notification.'))`, id, personal)
	if err != nil {
		return 0, fmt.Errorf("withdrawing messages about user %s: %w", id, err)
	}

	return tag.RowsAffected(), nil
}

// blank takes the content from the poisoned messages about a user. The entries
// stay: an operator has still to decide on them, and may have begun to.
func blank(ctx context.Context, tx pgx.Tx, id string) (int64, error) {
	rows, err := tx.Query(ctx, `SELECT id, key, payload FROM poison WHERE topic = ANY($1) AND (payload <> '' OR edited IS NOT NULL)`, personal)
	if err != nil {
		return 0, fmt.Errorf("reading poisoned messages: %w", err)
	}

	var (
		ours    []int64
		entry   int64
		key     string
		payload []byte
	)

	_, err = pgx.ForEachRow(rows, []any{&entry, &key, &payload}, func() error {
		if key == id || about(payload) == id {
			ours = append(ours, entry)
		}

		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("reading poisoned messages: %w", err)
	}

	for _, sql := range []string{
		`UPDATE poison SET payload = '', edited = NULL, headers = '{}', revision = revision + 1,
			error = 'the user was erased, and the content of the message with the user' WHERE id = ANY($1)`,
		`UPDATE poison_actions SET payload = NULL WHERE entry_id = ANY($1)`,
	} {
		if _, err := tx.Exec(ctx, sql, ours); err != nil {
			return 0, fmt.Errorf("blanking poisoned messages about user %s: %w", id, err)
		}
	}

	return int64(len(ours)), nil
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
