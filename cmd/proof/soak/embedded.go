package soak

import (
	"context"
	"hash/fnv"
	"math/rand/v2"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// embedded is a producer for the embedded broker: it inserts rows into the outbox.
type embedded struct{ db *pgxpool.Pool }

// publish writes the messages in one transaction, in order.
func (e embedded) publish(ctx context.Context, list []outgoing) error {
	var (
		shards       = make([]int16, len(list))
		topics, keys = make([]string, len(list)), make([]string, len(list))
		ids          = make([]uuid.UUID, len(list))
		payloads     = make([][]byte, len(list))
	)

	for i, o := range list {
		topics[i], keys[i], ids[i], payloads[i] = o.topic, o.order+o.user, o.id, []byte(o.payload)
		shards[i] = shardOf(keys[i])

		if o.id == uuid.Nil {
			ids[i] = newID()
		}
	}

	return pgx.BeginFunc(ctx, e.db, func(tx pgx.Tx) error {
		// The transaction needs its id before it takes the first sequence number.
		_, err := tx.Exec(ctx, `
			INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload)
			SELECT shard, topic, key, id AS message, id AS correlation, payload
			FROM unnest($1::smallint[], $2::text[], $3::text[], $4::uuid[], $5::bytea[]) WITH ORDINALITY AS r (shard, topic, key, id, payload, n)
			WHERE pg_current_xact_id() IS NOT NULL
			ORDER BY n`, shards, topics, keys, ids, payloads)
		if err != nil {
			return err
		}

		_, err = tx.Exec(ctx, `SELECT pg_notify('millrace_outbox', '')`)

		return err
	})
}

// shardOf is the service's function: FNV-1a modulo 64.
func shardOf(key string) int16 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))

	return int16(h.Sum32() % 64)
}

// rebalance does nothing: replicas divide the shards among themselves.
func (embedded) rebalance(context.Context, *rand.Rand) (string, error) { return "nothing", nil }

// backlog returns 0: the outbox is checked anyway.
func (embedded) backlog(context.Context) (int, error) { return 0, nil }

// published returns nothing: the embedded broker keeps no messages.
func (embedded) published(context.Context, string) ([]record, error) { return nil, nil }

func (embedded) close() {}
