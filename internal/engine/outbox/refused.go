package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Refused is a message that its broker will never take as it is, such as one that is too
// large. It stays in the outbox until an operator retries or discards it; later messages
// with its key are published. Its due time is infinity, so that reads of the outbox skip
// it.
type Refused struct {
	Seq       int64     `json:"id"`
	Topic     string    `json:"topic"`
	Key       string    `json:"key"`
	MessageID uuid.UUID `json:"message_id"`
	// Bytes is the size of the payload.
	Bytes     int       `json:"bytes"`
	CreatedAt time.Time `json:"created_at"`
	Why       string    `json:"why"`
}

// refusals holds the rows that the broker has refused but the table does not yet mark as
// refused.
type refusals struct {
	mu   sync.Mutex
	seqs []int64
	whys []string
}

func (f *refusals) add(seq int64, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.seqs, f.whys = append(f.seqs, seq), append(f.whys, why)
}

// take returns all rows and forgets them.
func (f *refusals) take() (seqs []int64, whys []string) {
	f.mu.Lock()
	defer f.mu.Unlock()

	seqs, whys = f.seqs, f.whys
	f.seqs, f.whys = nil, nil

	return seqs, whys
}

// refuseMessage sets aside a message that the broker refuses.
func (r *link) refuseMessage(failed row, refusal *driver.RefusedError) {
	r.logger.LogAttrs(context.Background(), slog.LevelWarn, "the broker refuses a message; see `millrace refused list`",
		append(failed.traceAttrs(), slog.String("topic", failed.Topic), slog.String("message_id", failed.ID.String()), slog.Any("error", refusal.Err))...)

	r.refusals.add(failed.Seq, event.Text(scrub.Text(refusal.Err.Error())))
	r.stuck.remove(failed.Topic) // the broker accepts messages for the topic
	r.queue.refused(failed)
	r.nudge()
}

// setAside marks the messages that the broker refused as refused in the table.
func (r *link) setAside(ctx context.Context, conn *pgx.Conn) error {
	seqs, whys := r.refusals.take()
	if len(seqs) == 0 {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	_, err := conn.Exec(ctx, `
		UPDATE outbox SET available_at = 'infinity', refused = r.why
		FROM unnest($1::bigint[], $2::text[]) AS r (seq, why)
		WHERE outbox.seq = r.seq AND available_at IS NULL`, seqs, whys)
	if err != nil {
		for i, seq := range seqs {
			r.refusals.add(seq, whys[i])
		}

		return fmt.Errorf("setting refused messages aside: %w", err)
	}

	r.queue.deleted(seqs)

	return nil
}

// probe queues one row of each refused topic that is due for an attempt, whatever else is
// queued. Each attempt uses a different key, because a refusal may concern only some keys.
func (r *link) probe(ctx context.Context, conn *pgx.Conn, owned *shards) error {
	for _, topic := range r.stuck.refused() {
		due, tried := r.stuck.due(topic, r.queue.has)
		if !due {
			continue
		}

		next := r.queue.probe()

		rows, err := r.first(ctx, conn, owned, topic, next, tried)
		again := err == nil && len(rows) == 0 && len(tried) > 0

		if again {
			rows, err = r.first(ctx, conn, owned, topic, next, nil)
		}

		switch {
		case err != nil:
			return err
		case len(rows) == 0:
			r.stuck.remove(topic) // nothing is left to publish
		default:
			r.stuck.probing(rows[0], again)
			r.queue.push(rows, next.returns)
			r.queue.hurry(rows[0].Key)
		}
	}

	return nil
}

// first reads the first row of a topic that may be published and whose key has not been
// tried.
func (r *link) first(ctx context.Context, conn *pgx.Conn, owned *shards, topic string, next want, tried []string) ([]row, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	rows, err := postgres.Collect(ctx, conn, pgx.RowToStructByPos[row], `
		SELECT `+rowColumns+`
		FROM outbox
		WHERE available_at IS NULL AND shard = ANY($1) AND NOT $2::int8multirange @> seq AND key NOT IN (SELECT unnest($3::text[])) AND topic = $4
		ORDER BY seq LIMIT 1`, owned.list, next.inFlight, append(next.backingOff, tried...), topic)
	if err != nil {
		return nil, fmt.Errorf("reading the first message for topic %s: %w", topic, err)
	}

	return rows, nil
}

// refusedColumns are the fields of Refused, in order.
const refusedColumns = `seq, topic, key, message_id, length(payload), created_at, refused`

// refusedOf selects the refused messages for topic $1, or for all topics if it is empty.
const refusedOf = ` FROM outbox WHERE available_at = 'infinity' AND ($1 = '' OR topic = $1) `

// ListRefused returns the refused messages for a topic, or for all topics if it is empty,
// oldest first. A limit of 0 means all.
func ListRefused(ctx context.Context, db postgres.Querier, topic string, limit int) ([]Refused, error) {
	list, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Refused],
		`SELECT `+refusedColumns+refusedOf+`ORDER BY seq LIMIT nullif($2, 0)`, topic, limit)
	if err != nil {
		return nil, fmt.Errorf("reading refused messages: %w", err)
	}

	return list, nil
}

// CountRefused counts what ListRefused lists; see postgres.CountRows.
func CountRefused(ctx context.Context, db postgres.Querier, topic string) (int, error) {
	return postgres.CountRows(ctx, db, `SELECT`+refusedOf, topic)
}

// ActOnRefused is RetryRefused or DiscardRefused.
type ActOnRefused func(ctx context.Context, pool *pgxpool.Pool, seqs []int64, by activity.Actor) ([]Refused, error)

// RetryRefused publishes refused messages again, in order, after whatever has been
// published in the meantime. It returns those that it found.
func RetryRefused(ctx context.Context, pool *pgxpool.Pool, seqs []int64, by activity.Actor) ([]Refused, error) {
	return actOnRefused(ctx, pool, seqs, by, activity.Retried,
		`UPDATE outbox SET available_at = NULL, refused = NULL WHERE seq = ANY($1) AND available_at = 'infinity'`)
}

// DiscardRefused deletes refused messages without publishing them. It returns those that
// it found.
func DiscardRefused(ctx context.Context, pool *pgxpool.Pool, seqs []int64, by activity.Actor) ([]Refused, error) {
	if strings.TrimSpace(by.Why) == "" {
		return nil, event.Errorf(event.Invalid, "why: is missing, expected a reason for the discard")
	}

	return actOnRefused(ctx, pool, seqs, by, activity.Discarded, `DELETE FROM outbox WHERE seq = ANY($1) AND available_at = 'infinity'`)
}

// actOnRefused runs sql for refused messages and records the action.
func actOnRefused(
	ctx context.Context, pool *pgxpool.Pool, seqs []int64, by activity.Actor, kind activity.Kind, sql string,
) (found []Refused, err error) {
	err = postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
		found, err = postgres.Collect(ctx, tx, pgx.RowToStructByPos[Refused], `
			SELECT `+refusedColumns+`
			FROM outbox WHERE seq = ANY($1) AND available_at = 'infinity' ORDER BY seq FOR UPDATE`, seqs)
		if err != nil {
			return fmt.Errorf("reading refused messages: %w", err)
		}

		if len(found) == 0 {
			return nil
		}

		_, err = tx.Exec(ctx, sql, postgres.Column(found, func(f Refused) int64 { return f.Seq }))
		if err != nil {
			return fmt.Errorf("changing refused messages: %w", err)
		}

		return activity.Record(ctx, tx, by, postgres.Column(found, func(f Refused) activity.Action {
			return activity.Action{Action: kind, Subject: f.Topic + " " + f.Key, MessageID: &f.MessageID, Detail: f.Why}
		})...)
	})

	return found, err
}
