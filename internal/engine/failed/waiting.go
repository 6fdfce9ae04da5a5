package failed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// QueueKeys adds a query to batch that finds which of the keys have failed messages;
// see StoredKey. The result is filled when the batch runs: found[key] is true if
// messages with the key wait, and false if they are all stopped. The rows stay
// locked until the transaction ends, so that no key is freed before messages are
// blocked by it, and no message is requeued before those that overtake it are
// recorded.
func QueueKeys(batch *pgx.Batch, consumer string, keys []string) (found map[string]bool) {
	found = map[string]bool{}

	batch.Queue(`
		SELECT key, due_at IS NOT NULL FROM failed_keys WHERE consumer = $1 AND key = ANY($2)
		ORDER BY key FOR KEY SHARE`, consumer, keys).Fn = func(results pgx.BatchResults) error {
		var (
			key   string
			waits bool
		)

		rows, err := results.Query()
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&key, &waits}, func() error {
				found[key] = waits

				return nil
			})
		}

		if err != nil {
			return fmt.Errorf("finding keys with failed messages: %w", err)
		}

		return nil
	}

	return found
}

// Block stores messages as blocked by the waiting messages with their keys. A message
// that is already stored is not changed. The caller must hold the keys; see QueueKeys.
// After the commit the caller wakes the keys that await one of the messages. Waking them
// in the transaction would lock keys of other consumers out of order.
func (s *Store) Block(ctx context.Context, tx pgx.Tx, list []Entry) error {
	for _, e := range list {
		if _, err := s.insert(ctx, tx, e, Waiting); err != nil {
			return err
		}
	}

	return nil
}

// Wake makes due the given keys that await a message on topic, and returns their number.
// Call it when messages on topic with these keys have been applied or blocked.
func (s *Store) Wake(ctx context.Context, topic string, keys []string) (int64, error) {
	tag, err := s.pool.Exec(ctx, `
		WITH awaiting AS (
			SELECT consumer, key FROM failed_keys WHERE key = ANY($1) AND due_at IS NOT NULL AND awaits <> '{}' AND awaits @> ARRAY[$2]
			ORDER BY consumer, key FOR NO KEY UPDATE
		)
		UPDATE failed_keys k SET due_at = clock_timestamp() FROM awaiting a WHERE k.consumer = a.consumer AND k.key = a.key`, keys, topic)
	if err != nil {
		return 0, fmt.Errorf("waking keys that await %s: %w", topic, err)
	}

	return tag.RowsAffected(), nil
}

// Awaited returns the topics of messages that waiting keys await.
func (s *Store) Awaited(ctx context.Context) ([]string, error) {
	topics, err := postgres.Collect(ctx, s.pool, pgx.RowTo[string], `
		SELECT DISTINCT unnest(awaits) FROM (SELECT awaits FROM failed_keys WHERE awaits <> '{}' AND due_at IS NOT NULL LIMIT $1) AS k`, postgres.MaxCount)
	if err != nil {
		return nil, fmt.Errorf("reading awaited topics: %w", err)
	}

	return topics, nil
}

// Unresolved returns which of keys have a failed message: one that waits in a consumer
// listed in waiting, or is stopped in one listed in stopped.
func (s *Store) Unresolved(ctx context.Context, waiting, stopped, keys []string) ([]string, error) {
	found, err := postgres.Collect(ctx, s.pool, pgx.RowTo[string], `
		SELECT u.key FROM unnest($3::text[], $4::text[]) AS u (key, failed_key)
		WHERE EXISTS (
			SELECT FROM failed_messages m WHERE m.consumer = ANY($2) AND m.failed_key = u.failed_key
			AND (m.state = 'stopped' OR m.state = 'waiting' AND m.consumer = ANY($1)) OFFSET 0)`,
		waiting, stopped, postgres.Column(keys, event.Text), postgres.Column(keys, StoredKey))
	if err != nil {
		return nil, fmt.Errorf("looking for failed messages: %w", err)
	}

	return found, nil
}

// Delivery is a message that is about to be applied.
type Delivery struct {
	MessageID   uuid.UUID
	Fingerprint int64
	// Key is the message's key; see StoredKey.
	Key string
	// EntryID and Revision are those of the failed message if it is retried, and 0 if
	// a broker delivered it.
	EntryID  int64
	Revision int
	// Ahead is true if the message is tried before the first message with its key, which
	// awaits a message on this message's topic.
	Ahead bool
}

// Decided returns the indexes of deliveries that must not be applied, because they
// might undo what an operator or a later message did. A retried message must be
// unchanged and, unless it is tried ahead, still the first waiting for its key: it
// may have been skipped, or an earlier one may have been requeued. A message that a broker
// delivered must not already be stored as stopped.
func Decided(ctx context.Context, db postgres.Querier, consumer string, list []Delivery) (map[int]bool, error) {
	decided, err := postgres.Map[int, bool](ctx, db, `
		SELECT d.n - 1, true
		FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::bigint[], $6::int[], $7::boolean[])
			WITH ORDINALITY AS d (message_id, fingerprint, key, entry, revision, ahead, n)
		WHERE CASE
			WHEN d.entry = 0 THEN EXISTS (
				SELECT FROM failed_messages m
				WHERE m.consumer = $1 AND m.message_id = d.message_id AND m.fingerprint = d.fingerprint AND m.state = 'stopped' OFFSET 0)
			ELSE NOT EXISTS (SELECT FROM failed_messages m WHERE m.id = d.entry AND m.state = 'waiting' AND m.revision = d.revision OFFSET 0)
				OR NOT d.ahead AND EXISTS (SELECT FROM failed_messages m WHERE m.consumer = $1 AND m.failed_key = d.key AND m.state = 'waiting' AND m.id < d.entry OFFSET 0) END`,
		consumer,
		postgres.Column(list, func(d Delivery) uuid.UUID { return d.MessageID }),
		postgres.Column(list, func(d Delivery) int64 { return d.Fingerprint }),
		postgres.Column(list, func(d Delivery) string { return d.Key }),
		postgres.Column(list, func(d Delivery) int64 { return d.EntryID }),
		postgres.Column(list, func(d Delivery) int { return d.Revision }),
		postgres.Column(list, func(d Delivery) bool { return d.Ahead }))
	if err != nil {
		return nil, fmt.Errorf("reading what operators decided: %w", err)
	}

	return decided, nil
}

// BlockAlone is Block for one message, in its own transaction. It returns false if
// the key is no longer waiting.
func (s *Store) BlockAlone(ctx context.Context, e Entry) (blocked bool, err error) {
	err = postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		key := StoredKey(e.Key)
		found := QueueKeys(batch, e.Consumer, []string{key})

		if err := tx.SendBatch(ctx, batch).Close(); err != nil || !found[key] {
			return err
		}

		blocked = true

		return s.Block(ctx, tx, []Entry{e})
	})

	return blocked, err
}

// Park stores e as waiting for its next attempt; e has failed e.Attempts times, most
// recently with e.Error. If e has an ID, it is already waiting: Park postpones its next
// attempt, unless the message has changed since e was read. A stored message that is
// not waiting is not changed, because its fate is up to an operator. If e awaits a
// message, awaits lists the topics that may carry that message; see Wake.
func (s *Store) Park(ctx context.Context, e Entry, wait time.Duration, awaits ...string) error {
	awaits = append([]string{}, awaits...) // NULL is not allowed

	return s.inTx(ctx, func(tx pgx.Tx) error {
		if e.ID != 0 {
			return s.parkAgain(ctx, tx, e, wait, awaits)
		}

		// A key that already exists is locked, and changed only if nothing waits:
		// without the lock it could be freed before the message is stored.
		k := Key{Consumer: e.Consumer, Key: StoredKey(e.Key)}
		if err := holdKey(ctx, tx, k, &wait, awaits); err != nil {
			return err
		}

		stored, err := s.insert(ctx, tx, e, Waiting)
		if err != nil || stored {
			return err
		}

		return free(ctx, tx, k)
	})
}

// holdKey adds a key or locks it. If no message waits for the key and wait is not nil,
// the key becomes due after wait and awaits a message on one of the topics awaits.
func holdKey(ctx context.Context, tx pgx.Tx, k Key, wait *time.Duration, awaits []string) error {
	var seconds *float64

	if wait != nil {
		s := wait.Seconds()
		seconds = &s
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO failed_keys AS k (consumer, key, due_at, awaits) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second', coalesce($4::text[], '{}'))
		ON CONFLICT ON CONSTRAINT failed_keys_pkey DO UPDATE SET due_at = coalesce(k.due_at, excluded.due_at),
			awaits = CASE WHEN k.due_at IS NULL THEN excluded.awaits ELSE k.awaits END`, k.Consumer, k.Key, seconds, awaits)
	if err != nil {
		return fmt.Errorf("storing key %s: %w", k.Key, err)
	}

	return nil
}

func (s *Store) parkAgain(ctx context.Context, tx pgx.Tx, e Entry, wait time.Duration, awaits []string) error {
	k, waits, err := lockKeyOf(ctx, tx, e.ID)
	if err != nil || !waits {
		return err // skipped, withdrawn or settled by another replica: the messages that it blocked need not wait
	}

	cause, group := causeOf(e)

	tag, err := tx.Exec(ctx, `
		UPDATE failed_messages
		SET attempts = $2, reason = $3, error = $4, cause = $5, group_id = $6, last_release = $7, tried_at = now(), last_at = now(), revision = revision + 1,
			awaits_since = coalesce(awaits_since, CASE WHEN $3 = 'early' THEN now() END)
		WHERE id = $1 AND state = 'waiting' AND revision = $8`,
		e.ID, e.Attempts, string(e.Reason), storedError(e), cause, group, event.Text(s.cfg.Release), e.Revision)
	if err != nil {
		return fmt.Errorf("parking message %s again: %w", e.MessageID, err)
	}

	if tag.RowsAffected() == 0 {
		return nil // whoever changed it also set the due time
	}

	// If another message was requeued ahead of this one in the meantime, the key stays
	// due. It also stays due if something made it due during the attempt: an operator, or
	// an awaited message that was applied.
	_, err = tx.Exec(ctx, `
		UPDATE failed_keys SET awaits = $5::text[],
			due_at = CASE WHEN due_at > leased_at THEN due_at ELSE clock_timestamp() + $4 * interval '1 second' END
		WHERE consumer = $1 AND key = $2
		AND $3 = (SELECT min(id) FROM failed_messages WHERE consumer = $1 AND failed_key = $2 AND state = 'waiting')`,
		k.Consumer, k.Key, e.ID, wait.Seconds(), awaits)
	if err != nil {
		return fmt.Errorf("postponing key %s: %w", k.Key, err)
	}

	return nil
}

// AwaitFrom restarts a waiting message's wait for another one, as of now + after. A
// message that has changed since e was read is left alone.
func (s *Store) AwaitFrom(ctx context.Context, e Entry, after time.Duration) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE failed_messages SET awaits_since = clock_timestamp() + $3 * interval '1 second'
		WHERE id = $1 AND revision = $2 AND state = 'waiting'`, e.ID, e.Revision, after.Seconds())
	if err != nil {
		return fmt.Errorf("recording when message %s began to await another one: %w", e.MessageID, err)
	}

	return nil
}

// errMoved reports that a message stopped waiting while its key was being locked. The
// transaction must end before it touches the message, because operators lock stopped
// messages before keys.
var errMoved = errors.New("the message is no longer waiting")

// inTx runs fn in a transaction, and runs it again if it returns errMoved.
func (s *Store) inTx(ctx context.Context, fn func(tx pgx.Tx) error) error {
	for {
		if err := postgres.InTx(ctx, s.pool, fn); !errors.Is(err, errMoved) {
			return err
		}
	}
}

// lockKeyOf locks the key that a message is waiting for. It waits until transactions
// that are about to block messages with the key have ended. Call it in a transaction of
// inTx.
func lockKeyOf(ctx context.Context, tx pgx.Tx, id int64) (k Key, waits bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT k.consumer, k.key FROM failed_keys k JOIN failed_messages m ON m.consumer = k.consumer AND m.failed_key = k.key
		WHERE m.id = $1 AND m.state = 'waiting' FOR UPDATE OF k`, id).Scan(&k.Consumer, &k.Key)
	if errors.Is(err, pgx.ErrNoRows) {
		return k, false, nil
	}

	if err != nil {
		return k, false, fmt.Errorf("locking the key of failed message %d: %w", id, err)
	}

	// Another process may have stopped the message before the key was locked.
	var still bool

	err = tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM failed_messages WHERE id = $1 AND state = 'waiting' AND failed_key = $2)`, id, k.Key).Scan(&still)

	switch {
	case err != nil:
		return k, false, fmt.Errorf("reading failed message %d: %w", id, err)
	case !still:
		return k, false, errMoved
	default:
		return k, true, nil
	}
}

// free deletes the keys that have neither waiting nor stopped messages. A key that has
// only stopped messages no longer blocks other messages.
func free(ctx context.Context, tx pgx.Tx, keys ...Key) error {
	if len(keys) == 0 {
		return nil
	}

	consumers := postgres.Column(keys, func(k Key) string { return k.Consumer })
	names := postgres.Column(keys, func(k Key) string { return k.Key })

	const given = ` (consumer, key) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND consumer = ANY($1) AND key = ANY($2) `

	batch := &pgx.Batch{}
	batch.Queue(`SELECT FROM failed_keys WHERE`+given+`ORDER BY consumer, key FOR UPDATE`, consumers, names)
	batch.Queue(`
		DELETE FROM failed_keys k WHERE`+given+`
		AND NOT EXISTS (SELECT FROM failed_messages m WHERE m.consumer = k.consumer AND m.failed_key = k.key)`, consumers, names)
	batch.Queue(`
		UPDATE failed_keys k SET due_at = NULL, awaits = '{}' WHERE`+given+`AND due_at IS NOT NULL
		AND NOT EXISTS (SELECT FROM failed_messages m WHERE m.consumer = k.consumer AND m.failed_key = k.key AND m.state = 'waiting')`,
		consumers, names)

	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("freeing keys: %w", err)
	}

	return nil
}

// Finish ends the wait of e, which has been applied. It deletes the message, or resolves
// it if it was ever stopped. The next message of the key becomes the first; if there is
// none, the key is freed. A message that was skipped during the attempt is also resolved,
// because operators no longer need to act on it. A message that was edited since e was
// read continues to wait, or stays stopped, because its new payload has not been applied.
func (s *Store) Finish(ctx context.Context, e Entry) error {
	return s.inTx(ctx, func(tx pgx.Tx) error {
		k, waits, err := lockKeyOf(ctx, tx, e.ID)
		if err != nil {
			return err
		}

		if !waits { // settled by another replica, withdrawn or skipped
			k = Key{Consumer: e.Consumer, Key: e.FailedKey}
		}

		const applied = `id = $1 AND state IN ('waiting', 'stopped') AND edited IS NOT DISTINCT FROM $2 AND applied_as IS NOT DISTINCT FROM $3`

		batch := &pgx.Batch{}
		batch.Queue(`DELETE FROM failed_messages WHERE `+applied+` AND deliveries = 0`, e.ID, e.Edited, e.AppliedAs)
		batch.Queue(`
			UPDATE failed_messages
			SET state = 'resolved', failed_key = NULL, resolution = 'applied', resolved_at = now(), revision = revision + 1
			WHERE `+applied, e.ID, e.Edited, e.AppliedAs)

		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return fmt.Errorf("finishing failed message %d: %w", e.ID, err)
		}

		return free(ctx, tx, k)
	})
}

// Lease is the right to try a key's messages. No other process has it until it ends
// or expires.
type Lease struct {
	Key

	// Since is when the lease began, on the database's clock.
	Since time.Time
}

// Lease leases keys that are due, at most room[consumer] of each consumer, until now +
// duration. Renew extends the leases, and EndLease ends one.
func (s *Store) Lease(ctx context.Context, room map[string]int, duration time.Duration) ([]Lease, error) {
	consumers := slices.Sorted(maps.Keys(room))
	limits := postgres.Column(consumers, func(consumer string) int64 { return int64(room[consumer]) })

	leases, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Lease], `
		UPDATE failed_keys k SET leased_at = clock_timestamp(), leased_until = clock_timestamp() + $1 * interval '1 second'
		FROM unnest($2::text[], $3::bigint[]) AS r (consumer, room)
		CROSS JOIN LATERAL (
			SELECT d.consumer, d.key FROM failed_keys d
			WHERE d.consumer = r.consumer AND d.due_at <= clock_timestamp() AND (d.leased_until IS NULL OR d.leased_until <= clock_timestamp())
			ORDER BY d.due_at LIMIT r.room FOR NO KEY UPDATE SKIP LOCKED) AS due
		WHERE k.consumer = due.consumer AND k.key = due.key
		RETURNING k.consumer, k.key, k.leased_at`, duration.Seconds(), consumers, limits)
	if err != nil {
		return nil, fmt.Errorf("leasing waiting keys: %w", err)
	}

	return leases, nil
}

// Renew makes leases last until now + duration. Those that have ended are skipped.
func (s *Store) Renew(ctx context.Context, leases []Lease, duration time.Duration) error {
	consumers := postgres.Column(leases, func(l Lease) string { return l.Consumer })
	keys := postgres.Column(leases, func(l Lease) string { return l.Key.Key })
	since := postgres.Column(leases, func(l Lease) time.Time { return l.Since })

	_, err := s.pool.Exec(ctx, `
		WITH own AS (
			SELECT k.consumer, k.key FROM failed_keys k
			JOIN unnest($1::text[], $2::text[], $3::timestamptz[]) AS l (consumer, key, since)
				ON k.consumer = l.consumer AND k.key = l.key AND k.leased_at = l.since
			ORDER BY k.consumer, k.key FOR NO KEY UPDATE OF k
		)
		UPDATE failed_keys k SET leased_until = clock_timestamp() + $4 * interval '1 second'
		FROM own WHERE k.consumer = own.consumer AND k.key = own.key`, consumers, keys, since, duration.Seconds())
	if err != nil {
		return fmt.Errorf("renewing leases: %w", err)
	}

	return nil
}

// EndLease ends a lease. If wait is not 0, the key is due after wait, unless something made
// it due during the lease. A lease that has expired and now belongs to another process is
// left alone.
func (s *Store) EndLease(ctx context.Context, l Lease, wait time.Duration) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE failed_keys SET leased_at = NULL, leased_until = NULL,
			due_at = CASE WHEN $4::float8 = 0 OR due_at > leased_at THEN due_at WHEN due_at IS NOT NULL THEN clock_timestamp() + $4 * interval '1 second' END
		WHERE consumer = $1 AND key = $2 AND leased_at = $3`, l.Consumer, l.Key.Key, l.Since, wait.Seconds())
	if err != nil {
		return fmt.Errorf("ending the lease of key %s: %w", l.Key.Key, err)
	}

	return nil
}

// Head is the first message of a key.
type Head struct {
	Entry

	// Behind is true if an earlier message with the same key, in another consumer, was
	// requeued together with this one and has not been tried since. Messages that were
	// requeued together are tried in order of arrival.
	Behind bool
	// Awaited is the time since the message was first found to await another one, or 0 if
	// it never was. It is negative if that time has not begun yet; see [Store.AwaitFrom].
	Awaited time.Duration
}

// Head returns the first message of a key; ok is false if none is waiting. If after is
// the ID of a message, Head returns the first later message that was not itself found to
// await another one. Messages for consumers that are not running do not set Behind.
func (s *Store) Head(ctx context.Context, k Key, after int64, running []string) (h Head, ok bool, err error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Head], `
		SELECT `+columns+`, deliveries > 0 AND tried_at IS NULL AND EXISTS (
			SELECT FROM failed_messages o
			WHERE o.consumer = ANY($3) AND o.consumer <> h.consumer AND o.failed_key = h.failed_key AND o.state = 'waiting'
			  AND o.id < h.id AND o.deliveries > 0 AND o.tried_at IS NULL
			  AND NOT EXISTS (
				SELECT FROM failed_messages p
				WHERE p.consumer = o.consumer AND p.failed_key = o.failed_key AND p.state = 'waiting' AND p.id < o.id AND p.tried_at IS NOT NULL)),
			coalesce(clock_timestamp() - awaits_since, interval '0')
		FROM failed_messages h WHERE consumer = $1 AND failed_key = $2 AND state = 'waiting' AND id > $4
			AND ($4 = 0 OR tried_at IS NULL OR reason <> 'early') ORDER BY id LIMIT 1`, k.Consumer, k.Key, running, after)
	if err != nil {
		return h, false, fmt.Errorf("reading the first message with key %s: %w", k.Key, err)
	}

	if len(list) == 0 {
		return h, false, nil
	}

	return list[0], true, nil
}
