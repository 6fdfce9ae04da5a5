package failed

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Overtaken describes the later messages that a consumer has applied since a message with
// the same key was stopped. Requeueing that message may overwrite what they did.
type Overtaken struct {
	// Key is the key that the message would be applied under.
	Key string `json:"key"`
	// Messages counts the later messages. It is 0 if they are unknown, because the
	// key could not be read when the message was stopped.
	Messages int64 `json:"messages"`
	// LastIDs are the IDs of the last ten, newest first.
	LastIDs []uuid.UUID `json:"last_ids"`
	// LastAt is when the last one was applied.
	LastAt *time.Time `json:"last_at,omitempty"`
}

func (o Overtaken) String() string {
	if o.Messages == 0 {
		return fmt.Sprintf("there is no record of later messages with key %s, because the key could not be read when the message was stopped", o.Key)
	}

	text := fmt.Sprintf("is overtaken: %d later messages with key %s were applied, the last one", o.Messages, o.Key)
	if o.Messages == 1 {
		text = fmt.Sprintf("is overtaken: a later message with key %s was applied,", o.Key)
	}

	return fmt.Sprintf("%s %s at %s; this one may overwrite what later ones did", text, o.LastIDs[0], o.LastAt.UTC().Format(time.RFC3339))
}

// err returns the error that explains why the message is not requeued.
func (o Overtaken) err() error {
	return &event.Error{Kind: event.Overtaken, Message: o.String(), Detail: o}
}

// maxLastIDs is the maximum number of IDs in Overtaken.LastIDs.
const maxLastIDs = 10

// Overtake records the messages that overtake stopped messages with their keys. A
// retried message overtakes only those that arrived before it. The caller must hold
// the keys (see QueueKeys) and apply the messages in tx.
func Overtake(ctx context.Context, tx pgx.Tx, consumer string, list []Delivery) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO overtaking_messages AS o (consumer, key, after_id, messages, last_ids, last_at)
		SELECT $1, m.key, coalesce(m.entry, s.id), count(*), (array_agg(m.id ORDER BY m.n DESC))[1:$5], now()
		FROM unnest($2::text[], $3::bigint[], $4::uuid[]) WITH ORDINALITY AS m (key, entry, id, n)
		CROSS JOIN LATERAL (
			SELECT max(s.id) AS id FROM failed_messages s
			WHERE s.consumer = $1 AND s.failed_key = m.key AND s.state = 'stopped' AND (m.entry IS NULL OR s.id < m.entry)) AS s
		WHERE s.id IS NOT NULL
		GROUP BY 2, 3 ORDER BY 2, 3
		ON CONFLICT ON CONSTRAINT overtaking_messages_pkey DO UPDATE
		SET messages = o.messages + excluded.messages, last_ids = (excluded.last_ids || o.last_ids)[1:$5], last_at = excluded.last_at`,
		consumer,
		postgres.Column(list, func(o Delivery) string { return o.Key }),
		postgres.Column(list, func(o Delivery) *int64 {
			if o.EntryID == 0 {
				return nil
			}

			return &o.EntryID
		}),
		postgres.Column(list, func(o Delivery) uuid.UUID { return o.MessageID }), maxLastIDs)
	if err != nil {
		return fmt.Errorf("recording messages that overtake stopped ones: %w", err)
	}

	return nil
}

// Overtaken returns, for each entry that is overtaken, the later messages with its key.
// check returns the key that an entry would be applied under.
func (s *Store) Overtaken(ctx context.Context, list []Entry, check Check) (map[int64]Overtaken, error) {
	known, err := overtaken(ctx, s.pool, list)
	if err != nil {
		return nil, err
	}

	found := map[int64]Overtaken{}

	for _, e := range list {
		key, _ := check(e.Consumer, e.Current())
		if o, is := e.overtaken(key, known); is && e.State == Stopped {
			found[e.ID] = o
		}
	}

	return found, nil
}

// overtaken reports whether e, which would be applied under key, is overtaken. known
// is the result of the function overtaken.
func (e Entry) overtaken(key string, known map[int64]Overtaken) (o Overtaken, is bool) {
	if key != "" && StoredKey(key) != e.FailedKey {
		return Overtaken{Key: key, LastIDs: []uuid.UUID{}}, true
	}

	o, is = known[e.ID]
	o.Key = cmp.Or(key, e.FailedKey)

	return o, is
}

// overtaken returns the later messages with the keys that the entries had when they
// were stopped.
func overtaken(ctx context.Context, db postgres.Querier, list []Entry) (map[int64]Overtaken, error) {
	type row struct {
		Overtaken

		ID int64
	}

	rows, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[row], `
		SELECT '', o.messages, ARRAY(
			SELECT l.id FROM overtaking_messages o CROSS JOIN LATERAL unnest(o.last_ids) WITH ORDINALITY AS l (id, n)
			WHERE o.consumer = m.consumer AND o.key = m.failed_key AND o.after_id >= m.id ORDER BY o.last_at DESC, l.n LIMIT $2), o.last_at, m.id
		FROM failed_messages m
		CROSS JOIN LATERAL (
			SELECT sum(messages)::bigint AS messages, max(last_at) AS last_at FROM overtaking_messages o
			WHERE o.consumer = m.consumer AND o.key = m.failed_key AND o.after_id >= m.id) AS o
		WHERE m.id = ANY($1) AND o.messages > 0`, idsOf(list), maxLastIDs)
	if err != nil {
		return nil, fmt.Errorf("reading messages that overtook stopped ones: %w", err)
	}

	found := make(map[int64]Overtaken, len(rows))
	for _, r := range rows {
		found[r.ID] = r.Overtaken
	}

	return found, nil
}
