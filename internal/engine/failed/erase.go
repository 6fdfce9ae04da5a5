package failed

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Erasing selects the messages about a person.
type Erasing struct {
	// Subject is the person's ID. It replaces the keys of messages that are kept:
	// a broker's key may be an e-mail address.
	Subject string
	// Topics are the topics with personal data. About reports whether a message on one
	// of them is about the person.
	Topics []string
	About  func(key string, payload []byte) bool
	// Also lists further messages, on any topic, that an operator names. Their keys stay
	// unless they mention the person.
	Also     []int64
	Mentions func(key string) bool
}

// Erased reports what Erase removed.
type Erased struct {
	// Withdrawn counts deleted messages, Emptied those that lost their content.
	Withdrawn, Emptied int64
	// Actions counts actions that lost an edited payload or a quoted error.
	Actions int64
	// About counts the messages about the person: all but those named only in Also.
	About int
}

// erasedError replaces the error, which may quote the payload.
const erasedError = "erased because the person that the message is about was erased"

// erasedKey replaces the key of a message that an operator names.
const erasedKey = "erased"

// Erase removes the messages that e selects. Waiting messages are deleted. Others lose
// their content but remain, because an operator may still have to act on them. Actions
// lose the payloads of edits, and errors that the service recorded as a reason.
func Erase(ctx context.Context, tx pgx.Tx, e Erasing) (erased Erased, err error) {
	// Serialize with operators, who lock messages before keys.
	if err := postgres.LockInTx(ctx, tx, postgres.LockFailed, ""); err != nil {
		return erased, err
	}

	// Lock the keys before the caller locks anything else, as consumers do.
	_, err = tx.Exec(ctx, `
		SELECT FROM failed_keys k WHERE key = $1
		AND EXISTS (SELECT FROM failed_messages m WHERE m.state = 'waiting' AND m.consumer = k.consumer AND m.failed_key = k.key AND m.topic = ANY($2))
		ORDER BY consumer FOR UPDATE`, StoredKey(e.Subject), e.Topics)
	if err != nil {
		return erased, fmt.Errorf("locking the keys of %s: %w", e.Subject, err)
	}

	ids, err := Concerned(ctx, tx, e)
	if err != nil {
		return erased, err
	}

	erased.About = len(ids)
	keys := postgres.Column(ids, func(int64) string { return event.Text(e.Subject) })

	for _, id := range e.Also {
		found, err := get(ctx, tx, id, ``)

		switch {
		case err != nil:
			return erased, err
		case slices.Contains(ids, id):
			continue
		case e.Mentions(found.Key):
			found.Key = erasedKey
		}

		ids, keys = append(ids, id), append(keys, found.Key)
	}

	return erased, erase(ctx, tx, ids, keys, &erased)
}

// Concerned returns the IDs of the messages that are about the person and still have
// their content. It holds one message in memory at a time.
func Concerned(ctx context.Context, db postgres.Querier, e Erasing) (ids []int64, err error) {
	rows, err := db.Query(ctx, `
		SELECT id, key, payload, edited FROM failed_messages WHERE topic = ANY($1) AND (payload <> '' OR edited IS NOT NULL) ORDER BY id`, e.Topics)
	if err != nil {
		return nil, fmt.Errorf("reading failed messages: %w", err)
	}

	var (
		id              int64
		key             string
		payload, edited []byte
	)

	_, err = pgx.ForEachRow(rows, []any{&id, &key, &payload, &edited}, func() error {
		about := e.About(key, payload)
		if edited != nil && e.About(key, edited) || about {
			ids = append(ids, id)
		}

		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading failed messages: %w", err)
	}

	return ids, nil
}

// erase erases messages and gives them new keys.
func erase(ctx context.Context, tx pgx.Tx, ids []int64, keys []string, erased *Erased) error {
	// An attempt that finishes locks the key before the message, so do the same.
	_, err := tx.Exec(ctx, `
		SELECT FROM failed_keys k WHERE EXISTS (
			SELECT FROM failed_messages m WHERE m.id = ANY($1) AND m.state = 'waiting' AND m.consumer = k.consumer AND m.failed_key = k.key)
		ORDER BY consumer, key FOR UPDATE`, ids)
	if err != nil {
		return fmt.Errorf("locking the keys of failed messages: %w", err)
	}

	// A reason recorded by the service is an error, which may quote the payload.
	tag, err := tx.Exec(ctx, `
		UPDATE operator_actions a SET payload = NULL, subject = m.consumer || ' ' || n.key,
			why = CASE WHEN a.who = $3 THEN $4 ELSE a.why END
		FROM unnest($1::bigint[], $2::text[]) AS n (id, key) JOIN failed_messages m ON m.id = n.id
		WHERE a.entry_id = m.id AND (a.payload IS NOT NULL OR a.subject <> m.consumer || ' ' || n.key OR a.who = $3 AND a.why <> $4)`,
		ids, keys, activity.Service, erasedError)
	if err != nil {
		return fmt.Errorf("erasing actions on failed messages: %w", err)
	}

	erased.Actions = tag.RowsAffected()

	waiting, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[Key], `
		DELETE FROM failed_messages WHERE id = ANY($1) AND state = 'waiting' RETURNING consumer, failed_key`, ids)
	if err != nil {
		return fmt.Errorf("withdrawing failed messages: %w", err)
	}

	erased.Withdrawn = int64(len(waiting))

	for _, k := range waiting {
		if err := free(ctx, tx, k); err != nil {
			return err
		}
	}

	return empty(ctx, tx, ids, keys, erased)
}

// empty removes the content of messages that are kept, and puts them into the group of
// erased messages for their consumer and reason. They have no content to apply, so it does
// not matter whether later messages overtake them, and they need no key.
func empty(ctx context.Context, tx pgx.Tx, ids []int64, keys []string, erased *Erased) error {
	held, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[Key], `
		SELECT DISTINCT consumer, failed_key FROM failed_messages WHERE id = ANY($1) AND failed_key IS NOT NULL`, ids)
	if err != nil {
		return fmt.Errorf("reading the keys of failed messages: %w", err)
	}

	kinds, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[struct {
		Consumer string
		Reason   event.Reason
	}], `SELECT DISTINCT consumer, reason FROM failed_messages WHERE id = ANY($1)`, ids)
	if err != nil {
		return fmt.Errorf("reading failed messages: %w", err)
	}

	for _, k := range kinds {
		tag, err := tx.Exec(ctx, `
			UPDATE failed_messages m SET payload = '', edited = NULL, headers = '{}', key = n.key, failed_key = NULL, revision = revision + 1,
				error = $3, cause = $3, group_id = $4
			FROM unnest($1::bigint[], $2::text[]) AS n (id, key) WHERE m.id = n.id AND consumer = $5 AND reason = $6`,
			ids, keys, erasedError, groupOf(k.Consumer, k.Reason, erasedError), k.Consumer, string(k.Reason))
		if err != nil {
			return fmt.Errorf("erasing failed messages: %w", err)
		}

		erased.Emptied += tag.RowsAffected()
	}

	return free(ctx, tx, held...)
}
