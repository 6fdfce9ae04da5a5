package wire

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Embedded is a producer for the Embedded broker: it inserts rows into the outbox.
type Embedded struct{ DB *pgxpool.Pool }

// Publish writes the messages in one transaction, in order.
func (e Embedded) Publish(ctx context.Context, list []Message) error {
	var (
		shards       = make([]int16, len(list))
		topics, keys = make([]string, len(list)), make([]string, len(list))
		ids          = make([]uuid.UUID, len(list))
		payloads     = make([][]byte, len(list))
		headers      = make([]string, len(list))
	)

	for i, o := range list {
		topics[i], keys[i], ids[i], payloads[i] = o.Topic, o.Key, o.ID, o.Payload
		shards[i] = shardOf(keys[i])
		headers[i] = fmt.Sprintf(`{"%s": "%d"}`, NumberHeader, o.Number)

		if o.ID == uuid.Nil {
			ids[i] = uuid.Must(uuid.NewV7())
		}
	}

	return pgx.BeginFunc(ctx, e.DB, func(tx pgx.Tx) error {
		// The transaction needs its id before it takes the first sequence number.
		_, err := tx.Exec(ctx, `
			INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload, headers)
			SELECT shard, topic, key, id AS message, id AS correlation, payload, headers
			FROM unnest($1::smallint[], $2::text[], $3::text[], $4::uuid[], $5::bytea[], $6::jsonb[]) WITH ORDINALITY AS r (shard, topic, key, id, payload, headers, n)
			WHERE pg_current_xact_id() IS NOT NULL
			ORDER BY n`, shards, topics, keys, ids, payloads, headers)
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

// Reset does nothing: the pool reconnects.
func (Embedded) Reset() error { return nil }

// Rebalance does nothing: replicas divide the shards among themselves.
func (Embedded) Rebalance(context.Context, *rand.Rand) (string, error) { return "nothing", nil }

// Backlog returns 0: the outbox is checked anyway.
func (Embedded) Backlog(context.Context) (int, error) { return 0, nil }

// Published returns nothing: the Embedded broker keeps no messages.
func (Embedded) Published(context.Context, string) ([]Record, error) { return nil, nil }

// Close implements Broker.
func (Embedded) Close() {}
