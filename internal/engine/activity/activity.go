// Package activity records what operators do: who, what, when and why.
package activity

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Actor identifies who acts and why.
type Actor struct {
	Who string
	Why string
	// Request identifies the command or HTTP request, so that its outcome can be looked
	// up; see failed.Store.Progress. It may be uuid.Nil.
	Request uuid.UUID
}

// Service is the actor name for actions that the service takes on its own.
const Service = "millrace"

// ErrNoActor reports an action without an actor.
var ErrNoActor = event.Errorf(event.Invalid, "the name of the actor is missing")

// Kind is the type of an action.
type Kind string

// Action kinds. Only the service records Reopened: a requeued message failed again.
const (
	Paused    Kind = "paused"
	Resumed   Kind = "resumed"
	Edited    Kind = "edited"
	Requeued  Kind = "requeued"
	Reopened  Kind = "reopened"
	Discarded Kind = "discarded"
	Retried   Kind = "retried"
	Skipped   Kind = "skipped"
	Repaired  Kind = "repaired"
	Erased    Kind = "erased"
	Published Kind = "published"
	Noted     Kind = "noted" // on a group of failed messages; the reason is the note
)

// Kinds lists all kinds.
var Kinds = []Kind{Paused, Resumed, Edited, Requeued, Reopened, Discarded, Retried, Skipped, Repaired, Erased, Published, Noted}

// Action is one recorded action.
type Action struct {
	ID     int64 `json:"id"`
	Action Kind  `json:"action"`
	// Subject names the target: a consumer, a consumer and key, an invariant and id,
	// a user, or a group of failed messages.
	Subject string `json:"subject"`
	// EntryID is the failed message that was the target, if any.
	EntryID *int64    `json:"entry_id,omitempty"`
	Who     string    `json:"who"`
	Why     string    `json:"why"`
	At      time.Time `json:"at"`
	// Detail holds extra information, such as the values before and after a repair.
	Detail string `json:"detail,omitempty"`
	// Payload is the payload after an edit.
	Payload event.Content `json:"payload,omitempty"`
	// MessageID is the ID under which a message was requeued.
	MessageID *uuid.UUID `json:"message_id,omitempty"`
	// RequestID is the same for all actions of one command or request.
	RequestID *uuid.UUID `json:"request_id,omitempty"`
}

// Record stores one actor's actions in the caller's transaction. It sets their IDs,
// actors and times.
func Record(ctx context.Context, tx pgx.Tx, by Actor, actions ...Action) error {
	if by.Who == "" {
		return ErrNoActor
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO operator_actions (action, subject, entry_id, who, why, detail, payload, message_id, request_id)
		SELECT a.action, a.subject, a.entry, $1, $2, a.detail, a.payload, a.message, nullif($9::uuid, $10)
		FROM unnest($3::text[], $4::text[], $5::bigint[], $6::text[], $7::bytea[], $8::uuid[])
		     WITH ORDINALITY AS a (action, subject, entry, detail, payload, message, n)
		ORDER BY a.n`,
		event.Text(by.Who), event.Text(by.Why),
		postgres.Column(actions, func(a Action) string { return string(a.Action) }),
		postgres.Column(actions, func(a Action) string { return event.Text(a.Subject) }),
		postgres.Column(actions, func(a Action) *int64 { return a.EntryID }),
		postgres.Column(actions, func(a Action) string { return event.Text(a.Detail) }),
		postgres.Column(actions, func(a Action) []byte { return a.Payload }),
		postgres.Column(actions, func(a Action) *uuid.UUID { return a.MessageID }), by.Request, uuid.Nil)
	if err != nil {
		return fmt.Errorf("recording actions by %s: %w", by.Who, err)
	}

	return nil
}

// erasedText replaces a reason that contains personal data.
const erasedText = "erased"

// EraseWhere removes the payloads of edits for which about returns true, wherever the
// edited messages are now. It returns the number of actions that it changed.
func EraseWhere(ctx context.Context, tx pgx.Tx, about func(payload []byte) bool) (int64, error) {
	rows, err := tx.Query(ctx, `SELECT id, payload FROM operator_actions WHERE payload IS NOT NULL`)
	if err != nil {
		return 0, fmt.Errorf("reading operator actions: %w", err)
	}

	var (
		id      int64
		payload []byte
		ids     []int64
	)

	_, err = pgx.ForEachRow(rows, []any{&id, &payload}, func() error {
		if about(payload) {
			ids = append(ids, id)
		}

		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("reading operator actions: %w", err)
	}

	return update(ctx, tx, `UPDATE operator_actions SET payload = NULL WHERE id = ANY($1)`, ids)
}

// Erase removes the free text and the payload of the actions with these IDs. The record
// of who did what and when remains; subject replaces the message's key.
func Erase(ctx context.Context, tx pgx.Tx, ids []int64, subject string) (int64, error) {
	n, err := update(ctx, tx, `
		UPDATE operator_actions SET why = $2, detail = '', payload = NULL,
			subject = CASE WHEN position(' ' IN subject) > 0 THEN split_part(subject, ' ', 1) || ' ' || $3 ELSE subject END
		WHERE id = ANY($1)`, ids, erasedText, event.Text(subject))
	if err == nil && n < int64(len(ids)) {
		err = event.Errorf(event.NotFound, "%d of the actions %v exist, expected all", n, ids)
	}

	return n, err
}

func update(ctx context.Context, tx pgx.Tx, sql string, ids []int64, args ...any) (int64, error) {
	tag, err := tx.Exec(ctx, sql, append([]any{ids}, args...)...)
	if err != nil {
		return 0, fmt.Errorf("erasing operator actions: %w", err)
	}

	return tag.RowsAffected(), nil
}

// Filter selects actions. The zero value selects all.
type Filter struct {
	Action  Kind
	Subject string
	Who     string
	// EntryIDs selects actions on these failed messages, unless nil.
	EntryIDs []int64
	// Since and Until bound the time: Since <= t < Until.
	Since, Until time.Time
	// Before selects actions with lower IDs. It is the cursor of a page.
	Before int64
}

// List returns at most limit actions, newest first.
func List(ctx context.Context, db postgres.Querier, f Filter, limit int) ([]Action, error) {
	if err := event.KnownName("action", f.Action, Kinds); err != nil {
		return nil, err
	}

	return query(ctx, db, f, `ORDER BY id DESC LIMIT `+fmt.Sprint(limit))
}

// Of returns the actions on failed messages, oldest first, keyed by entry ID.
func Of(ctx context.Context, db postgres.Querier, entryIDs []int64) (map[int64][]Action, error) {
	actions, err := query(ctx, db, Filter{EntryIDs: entryIDs}, `ORDER BY id`)
	found := make(map[int64][]Action, len(entryIDs))

	for _, a := range actions {
		found[*a.EntryID] = append(found[*a.EntryID], a)
	}

	return found, err
}

// Count counts the actions that f selects; see postgres.CountRows.
func Count(ctx context.Context, db postgres.Querier, f Filter) (int, error) {
	where := f.where()

	return postgres.CountRows(ctx, db, `SELECT FROM operator_actions WHERE `+where.String(), where.Args...)
}

func (f Filter) where() (where postgres.Where) {
	where.And(f.Action != "", "action = $?", string(f.Action))
	where.And(f.Subject != "", "subject = $?", event.Text(f.Subject))
	where.And(f.Who != "", "who = $?", event.Text(f.Who))
	where.And(f.EntryIDs != nil, "entry_id = ANY($?)", f.EntryIDs)
	where.And(!f.Since.IsZero(), "acted_at >= $?", f.Since)
	where.And(!f.Until.IsZero(), "acted_at < $?", f.Until)
	where.And(f.Before > 0, "id < $?", f.Before)

	return where
}

func query(ctx context.Context, db postgres.Querier, f Filter, order string) ([]Action, error) {
	where := f.where()

	actions, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Action], `
		SELECT id, action, subject, entry_id, who, why, acted_at, detail, payload, message_id, request_id
		FROM operator_actions WHERE `+where.String()+` `+order, where.Args...)
	if err != nil {
		return nil, fmt.Errorf("reading operator actions: %w", err)
	}

	return actions, nil
}
