// Package outbox publishes the messages of committed transactions. Append stores
// messages in the caller's transaction. The [Relay] publishes them after the commit,
// in order per key, and deletes them once the broker has confirmed them.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Shards is the number of shards that replicas divide among themselves. It must not
// change, because the table stores shard numbers.
const Shards = 64

// Channel is the Postgres notification channel through which processes wake each
// other's relays.
const Channel = "millrace_outbox"

// Config configures the relay.
type Config struct {
	// BatchSize is the maximum number of messages per read. Defaults to 512.
	BatchSize int `koanf:"batch_size"`
	// MaxInFlight bounds the messages that have been read but not yet deleted. The relay
	// also reads at most 32 MiB of payloads ahead. Defaults to 2048.
	MaxInFlight int `koanf:"max_in_flight"`
	// PollInterval is how often the relay reads when nothing wakes it, and so how
	// late a scheduled message may be. Defaults to 1s.
	PollInterval time.Duration `koanf:"poll_interval"`
	// DrainTimeout bounds how long a stopping relay waits for confirmations.
	// Defaults to 5s.
	DrainTimeout time.Duration `koanf:"drain_timeout"`
	// Release is the version of the program, which the relay's sessions are named after, so
	// that others see which versions run. The program sets it.
	Release string `koanf:"-"`
}

// SessionName is the application_name of the relay's sessions, followed by the release.
const SessionName = "millrace relay"

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		BatchSize:    512,
		MaxInFlight:  2048,
		PollInterval: time.Second,
		DrainTimeout: 5 * time.Second,
		Release:      "dev",
	}
}

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	return errors.Join(
		check.Value(c.BatchSize >= 1 && c.BatchSize <= 10_000, "outbox.batch_size", c.BatchSize, "1 to 10000"),
		check.Value(c.MaxInFlight >= c.BatchSize, "outbox.max_in_flight", c.MaxInFlight, "at least outbox.batch_size"),
		check.Value(c.PollInterval >= 10*time.Millisecond, "outbox.poll_interval", c.PollInterval, "at least 10ms"),
		check.Value(c.DrainTimeout > 0, "outbox.drain_timeout", c.DrainTimeout, "more than 0s"),
	)
}

// Append stores events in tx, to be published in the given order after the commit. The
// caller must hold the row locks of their aggregates, so that sequence numbers are in
// commit order per key.
func Append(ctx context.Context, tx pgx.Tx, events []event.Outgoing) error {
	batch := &pgx.Batch{}
	if err := Queue(batch, events); err != nil || batch.Len() == 0 {
		return err
	}

	return tx.SendBatch(ctx, batch).Close()
}

// Queue is Append, but queues the statement instead of sending it.
func Queue(batch *pgx.Batch, events []event.Outgoing) error {
	if len(events) == 0 {
		return nil
	}

	r := newRows(len(events))

	for _, e := range events {
		payload, err := event.Encode(e.Payload)
		if err != nil {
			return err
		}

		var headers event.Headers
		if e.TraceState != "" {
			headers = event.Headers{event.HeaderTraceState: e.TraceState}
		}

		r.add(e.Payload.Topic(), e.Payload.Key(), e.Meta, headers, payload, e.Delay)
	}

	r.insert(batch)

	return nil
}

// AppendMessages stores messages unchanged, without decoding them. It refuses those
// that Message.Check refuses.
func AppendMessages(ctx context.Context, tx pgx.Tx, messages []event.Message) error {
	if len(messages) == 0 {
		return nil
	}

	r := newRows(len(messages))
	for _, m := range messages {
		if err := m.Check(); err != nil {
			return err
		}

		r.add(m.Topic, m.Key, event.Meta{ID: m.ID, Correlation: m.ID}, m.Headers, m.Payload, 0)
	}

	batch := &pgx.Batch{}
	r.insert(batch)

	return tx.SendBatch(ctx, batch).Close()
}

// Unpublished returns those keys that have a message on one of topics in the outbox. No
// index contains keys, so it reads the whole outbox: call it rarely, for many keys.
func Unpublished(ctx context.Context, db postgres.Querier, topics, keys []string) ([]string, error) {
	found, err := postgres.Collect(ctx, db, pgx.RowTo[string],
		`SELECT DISTINCT key FROM outbox WHERE topic = ANY($1) AND key = ANY($2)`, topics, postgres.Column(keys, event.Text))
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}

	return found, nil
}

// rows holds the columns of the messages to insert.
type rows struct {
	shards            []int16
	topics, keys      []string
	ids, correlations []uuid.UUID
	causations        []*uuid.UUID
	headers           []*string
	payloads          [][]byte
	delays            []float64
	traces            []*string
}

func newRows(n int) *rows {
	return &rows{
		shards: make([]int16, 0, n), topics: make([]string, 0, n), keys: make([]string, 0, n),
		ids: make([]uuid.UUID, 0, n), correlations: make([]uuid.UUID, 0, n), causations: make([]*uuid.UUID, 0, n),
		headers: make([]*string, 0, n), payloads: make([][]byte, 0, n), delays: make([]float64, 0, n),
		traces: make([]*string, 0, n),
	}
}

func (r *rows) add(topic, key string, meta event.Meta, headers event.Headers, payload []byte, delay time.Duration) {
	if key == "" { // unordered: use a unique key
		key = meta.ID.String()
	}

	var causation *uuid.UUID
	if meta.Causation != uuid.Nil {
		causation = &meta.Causation
	}

	var encoded *string

	if len(headers) > 0 {
		// Headers.MarshalJSON cannot fail: it escapes what JSON cannot represent.
		data, _ := headers.MarshalJSON()
		text := string(data)
		encoded = &text
	}

	var trace *string
	if meta.Trace != "" {
		trace = &meta.Trace
	}

	r.traces = append(r.traces, trace)
	r.shards = append(r.shards, shardOf(key))
	r.topics = append(r.topics, topic)
	r.keys = append(r.keys, key)
	r.ids = append(r.ids, meta.ID)
	r.correlations = append(r.correlations, meta.Correlation)
	r.causations = append(r.causations, causation)
	r.headers = append(r.headers, encoded)
	r.payloads = append(r.payloads, payload)
	r.delays = append(r.delays, delay.Seconds())
}

// insert queues the statement that inserts the rows.
func (r *rows) insert(batch *pgx.Batch) {
	// Compute the due time with the database's clock. The condition assigns the
	// transaction's ID before the first sequence number; marks rely on that order.
	postgres.Queue(batch, "appending to outbox", `
		INSERT INTO outbox (shard, topic, key, message_id, correlation_id, causation_id, headers, payload, traceparent, available_at)
		SELECT shard, topic, key, id, correlation, causation, headers, payload, trace,
		       CASE WHEN delay > 0 THEN clock_timestamp() + delay * interval '1 second' END
		FROM unnest($1::smallint[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[], $7::jsonb[], $8::bytea[], $9::float8[], $10::text[])
		     WITH ORDINALITY AS r (shard, topic, key, id, correlation, causation, headers, payload, delay, trace, n)
		WHERE pg_current_xact_id() IS NOT NULL
		ORDER BY n`,
		r.shards, r.topics, r.keys, r.ids, r.correlations, r.causations, r.headers, r.payloads, r.delays, r.traces)
}

// shardOf maps a key to its shard: FNV-1a modulo the number of shards. The table
// stores the result, so the function must never change.
func shardOf(key string) int16 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))

	return int16(h.Sum32() % Shards)
}
