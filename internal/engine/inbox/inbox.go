// Package inbox records which messages have been applied. A message is claimed in the
// transaction that applies it, so the claim exists if and only if the effects do. This
// makes redeliveries harmless.
package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Entry identifies a message to a consumer.
type Entry struct {
	ID uuid.UUID
	// Fingerprint is event.Fingerprint of the payload.
	Fingerprint int64
	// Correlation and Causation are the message's place in its conversation.
	Correlation, Causation uuid.UUID
}

// Verdict is the inbox's answer about a message.
type Verdict int

const (
	// Fresh means that the message is new: apply it.
	Fresh Verdict = iota
	// Duplicate means that the message has already been applied: acknowledge it.
	Duplicate
	// Conflict means that another payload was applied under the same ID.
	Conflict
)

// ErrConflict rejects a message whose ID was used with another payload.
var ErrConflict = event.RejectAs(event.ReasonConflict,
	errors.New("message id: was already used with a different payload"))

// ErrClaimed means that a message passed to ClaimNew had already been claimed. Roll back
// the transaction, and use Claim in a new one.
var ErrClaimed = errors.New("a message had already been claimed")

// ClaimNew queues a claim of entries that are probably all new, at half the cost of Claim.
// If any of them is not new, it fails with ErrClaimed.
func ClaimNew(batch *pgx.Batch, consumer string, entries []Entry) {
	queueClaim(batch, ``, consumer, entries).Fn = func(results pgx.BatchResults) error {
		_, err := results.Exec()

		switch {
		case err == nil:
			return nil
		case postgres.IsDuplicate(err):
			return ErrClaimed
		default:
			return fmt.Errorf("claiming messages: %w", err)
		}
	}
}

// Claims are entries that a transaction claims for a consumer.
type Claims struct {
	consumer string
	entries  []Entry
	// claimed has the ids of those that were new.
	claimed []uuid.UUID
}

// Claim queues a claim of entries. It waits for concurrent transactions that claim the
// same message.
func Claim(batch *pgx.Batch, consumer string, entries []Entry) *Claims {
	c := &Claims{consumer: consumer, entries: entries}

	queueClaim(batch, `ON CONFLICT DO NOTHING RETURNING message_id`, consumer, entries).Fn = func(results pgx.BatchResults) error {
		rows, err := results.Query()
		if err == nil {
			c.claimed, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		}

		if err != nil {
			return fmt.Errorf("claiming messages: %w", err)
		}

		return nil
	}

	return c
}

// Verdicts returns one verdict for each entry, once the batch with the claim has been sent.
// Of several equal entries only the first is fresh.
func (c *Claims) Verdicts(ctx context.Context, tx pgx.Tx) ([]Verdict, error) {
	if len(c.claimed) == len(c.entries) {
		return make([]Verdict, len(c.entries)), nil
	}

	return verdictsOf(ctx, tx, c.consumer, c.entries, c.claimed)
}

// queueClaim queues, in batch, the statement that inserts entries.
func queueClaim(batch *pgx.Batch, otherwise, consumer string, entries []Entry) *pgx.QueuedQuery {
	ids, days := columns(entries)
	prints := make([]int64, len(entries))
	correlations, causations := make([]*uuid.UUID, len(entries)), make([]*uuid.UUID, len(entries))

	for i, e := range entries {
		prints[i] = e.Fingerprint

		if e.Correlation != e.ID && e.Correlation != uuid.Nil {
			correlations[i] = &entries[i].Correlation
		}

		if e.Causation != uuid.Nil {
			causations[i] = &entries[i].Causation
		}
	}

	// Sort to prevent deadlocks between transactions that claim the same IDs.
	return batch.Queue(`
		INSERT INTO inbox (consumer, message_id, day, fingerprint, correlation_id, causation_id)
		SELECT $1, e.id, e.day, e.print, e.correlation, e.causation
		FROM unnest($2::uuid[], $3::date[], $4::bigint[], $5::uuid[], $6::uuid[])
		     WITH ORDINALITY AS e (id, day, print, correlation, causation, n)
		ORDER BY e.id, e.n
		`+otherwise, consumer, ids, days, prints, correlations, causations)
}

// verdictsOf returns the verdicts for entries. Only those in claimed are new.
func verdictsOf(ctx context.Context, tx pgx.Tx, consumer string, entries []Entry, claimed []uuid.UUID) ([]Verdict, error) {
	seen, err := fingerprints(ctx, tx, consumer, entries, nil)
	if err != nil {
		return nil, err
	}

	fresh := make(map[uuid.UUID]bool, len(claimed))
	for _, id := range claimed {
		fresh[id] = true
	}

	verdicts := judge(entries, seen)
	for i, e := range entries {
		if fresh[e.ID] && verdicts[i] == Duplicate {
			verdicts[i], fresh[e.ID] = Fresh, false
		}
	}

	return verdicts, nil
}

// Unclaim removes claims made in this transaction for messages that were not applied
// after all.
func Unclaim(ctx context.Context, tx pgx.Tx, consumer string, entries []Entry) error {
	// Delete one at a time: few messages are unclaimed, and a join with their IDs may
	// read all rows of the consumer.
	batch := &pgx.Batch{}
	for _, e := range entries {
		batch.Queue(`DELETE FROM inbox WHERE consumer = $1 AND message_id = $2 AND day = $3`, consumer, e.ID, Day(e.ID))
	}

	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("removing claims: %w", err)
	}

	return nil
}

// Seen returns the verdicts that Claim would give now, without claiming. along is as in
// Claim.
func Seen(ctx context.Context, db postgres.Batcher, consumer string, entries []Entry, along *pgx.Batch) ([]Verdict, error) {
	seen, err := fingerprints(ctx, db, consumer, entries, along)
	if err != nil {
		return nil, err
	}

	return judge(entries, seen), nil
}

func judge(entries []Entry, seen map[uuid.UUID]int64) []Verdict {
	verdicts := make([]Verdict, len(entries))

	for i, e := range entries {
		switch fingerprint, ok := seen[e.ID]; {
		case !ok:
			verdicts[i] = Fresh
		case fingerprint == e.Fingerprint:
			verdicts[i] = Duplicate
		default:
			verdicts[i] = Conflict
		}
	}

	return verdicts
}

func fingerprints(
	ctx context.Context, db postgres.Batcher, consumer string, entries []Entry, along *pgx.Batch,
) (map[uuid.UUID]int64, error) {
	if along == nil {
		along = &pgx.Batch{}
	}

	var (
		ids, days = columns(entries)
		seen      = map[uuid.UUID]int64{}
		id        uuid.UUID
		sum       int64
	)

	// The lateral join makes Postgres look up each entry by the primary key. A plain
	// join may become a hash join, which reads all rows of the consumer.
	along.Queue(`
		SELECT e.id, i.fingerprint
		FROM unnest($2::uuid[], $3::date[]) AS e (id, day)
		CROSS JOIN LATERAL (
			SELECT x.fingerprint FROM inbox x WHERE x.consumer = $1 AND x.message_id = e.id AND x.day = e.day OFFSET 0
		) AS i`, consumer, ids, days).
		Query(func(rows pgx.Rows) error {
			_, err := pgx.ForEachRow(rows, []any{&id, &sum}, func() error {
				seen[id] = sum

				return nil
			})

			return err
		})

	if err := db.SendBatch(ctx, along).Close(); err != nil {
		return nil, fmt.Errorf("reading inbox: %w", err)
	}

	return seen, nil
}

func columns(entries []Entry) (ids []uuid.UUID, days []time.Time) {
	for _, e := range entries {
		ids = append(ids, e.ID)
		days = append(days, Day(e.ID))
	}

	return ids, days
}

// Day returns the UTC day of the partition that holds id: the day in a UUIDv7 (RFC
// 9562, section 5.7), 1970-01-01 for any other ID. It depends only on the ID, never
// on a clock.
func Day(id uuid.UUID) time.Time {
	if id.Version() != 7 {
		return time.Unix(0, 0).UTC()
	}

	var millis int64
	for _, b := range id[:6] {
		millis = millis<<8 | int64(b)
	}

	// 48 bits of milliseconds reach the year 10889, within Postgres's range.
	return time.UnixMilli(millis).UTC().Truncate(24 * time.Hour)
}
