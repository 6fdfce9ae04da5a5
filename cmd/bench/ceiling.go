package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// ceiling runs only the statements that the pipeline runs on the embedded broker, with
// the batch size of the last embedded run. For each topic, one goroutine reads and
// deletes outbox rows as the relay does, and applies batches as the consumer does.
// The rest of the service is left out: no message is delivered, acknowledged, logged or
// counted.
func (l *lab) ceiling(ctx context.Context, warmup bool) (figures, error) {
	t := trial{kind: broker.Embedded, load: orders(l.skus), n: l.orders}
	if warmup {
		t.n = max(t.n/5, 100)
	}

	s, err := l.newSite(ctx, t.kind)
	if err != nil {
		return nil, err
	}
	defer s.close()

	if err := s.preload(ctx, t); err != nil {
		return nil, err
	}

	before := s.usage(ctx)

	if err := s.runStages(ctx, t.n); err != nil {
		return nil, err
	}

	used := s.usage(ctx).since(before)
	used.service = used.bench

	var elapsed float64
	err = s.pool.QueryRow(ctx, t.load.elapsed).Scan(&elapsed)

	f := used.per(float64(t.n))
	f[perSecond], f[batchSize] = float64(t.n)/elapsed, float64(l.batch)

	return f, err
}

// runStages applies n orders.
func (s *site) runStages(ctx context.Context, n int) error {
	process := fulfilment.NewProcess(fulfilment.DefaultConfig(), order.NewService(s.pool), inventory.NewService(s.pool), payment.NewSimulated(), nil)
	stages := []*stage{
		{topic: fulfilment.TopicOrderCreated, consumer: "fulfilment.place", apply: batchOf(process.Place)},
		{topic: fulfilment.TopicPaymentRequested, consumer: "fulfilment.charge", apply: charges(process), admit: process.Admit},
		{topic: fulfilment.TopicOrderCompleted, consumer: "fulfilment.complete", apply: batchOf(process.Complete)},
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var wait sync.WaitGroup

	var preloaded int64
	if err := s.pool.QueryRow(ctx, `SELECT max(seq) FROM outbox`).Scan(&preloaded); err != nil {
		return err
	}

	for i, st := range stages {
		st.site, st.left, st.arrived = s, n, make(chan struct{}, 1)
		if i > 0 {
			st.low = preloaded
		}

		if i+1 < len(stages) {
			st.next = stages[i+1]
		}
	}

	for _, st := range stages {
		wait.Go(func() {
			if err := st.run(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", st.consumer, err))
			}
		})
	}

	stages[0].wake()
	wait.Wait()

	return context.Cause(ctx)
}

// stage is a consumer of the pipeline with the relay of its topic.
type stage struct {
	site            *site
	topic, consumer string
	admit           func(context.Context, postgres.Querier, []event.Event[fulfilment.PaymentRequested]) ([]error, error)
	apply           func(context.Context, pgx.Tx, []stored) ([]event.Outgoing, error)
	left            int // messages to apply
	next            *stage
	// arrived receives a value once the previous stage has committed messages.
	arrived chan struct{}

	low     int64   // the sequence number up to which all rows have been read
	applied []int64 // rows to delete
}

// stored is a row of the outbox.
type stored struct {
	Seq              int64
	Topic, Key       string
	ID, Correlation  uuid.UUID
	Causation        *uuid.UUID
	Headers, Payload []byte
	Trace            *string
}

func (st *stage) wake() {
	select {
	case st.arrived <- struct{}{}:
	default:
	}
}

func (st *stage) run(ctx context.Context) error {
	relay, err := postgres.Connect(ctx, st.site.pool, "bench relay", map[string]string{
		"synchronous_commit": "off", "enable_bitmapscan": "off", "enable_sort": "off",
	})
	if err != nil {
		return err
	}
	defer relay.Close(context.WithoutCancel(ctx))

	for {
		rows, err := st.exchange(ctx, relay)
		if err != nil || len(rows) == 0 && st.left == 0 {
			return err
		}

		if len(rows) == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-st.arrived:
			}

			continue
		}

		if err := st.transact(ctx, rows); err != nil {
			return err
		}

		st.left -= len(rows)
		st.applied = postgres.Column(rows, func(r stored) int64 { return r.Seq })
		st.low = st.applied[len(rows)-1]

		if st.next != nil {
			st.next.wake()
		}
	}
}

// exchange deletes the applied rows and reads the next batch, as the relay does in one
// round trip.
func (st *stage) exchange(ctx context.Context, relay *pgx.Conn) (rows []stored, err error) {
	batch := &pgx.Batch{}

	if len(st.applied) > 0 {
		batch.Queue(`DELETE FROM outbox WHERE seq = ANY($1) AND available_at IS NULL`, st.applied)
	}

	batch.Queue(`
		SELECT seq, topic, key, message_id, correlation_id, causation_id, headers, payload, traceparent FROM outbox
		WHERE available_at IS NULL AND seq > $1 AND topic = $2 ORDER BY seq LIMIT $3`, st.low, st.topic, st.site.lab.batch).
		Query(func(found pgx.Rows) error {
			rows, err = pgx.CollectRows(found, pgx.RowToStructByPos[stored])

			return err
		})

	return rows, relay.SendBatch(ctx, batch).Close()
}

// transact applies a batch as its consumer does.
func (st *stage) transact(ctx context.Context, rows []stored) error {
	var (
		entries = postgres.Column(rows, stored.entry)
		keys    = postgres.Column(rows, func(r stored) string { return r.Key })
	)

	if st.admit != nil {
		if err := st.lookUp(ctx, rows, entries, keys); err != nil {
			return err
		}
	}

	first := &pgx.Batch{}
	failed.QueueKeys(first, st.consumer, keys)
	inbox.ClaimNew(first, st.consumer, entries)

	return postgres.InPipeline(ctx, st.site.pool, first, func(tx pgx.Tx) (*pgx.Batch, error) {
		sent, err := st.apply(ctx, tx, rows)
		if err != nil {
			return nil, err
		}

		last := &pgx.Batch{}

		return last, outbox.Queue(last, sent)
	})
}

// lookUp runs the queries that a consumer with an effect runs before it performs the
// effect.
func (st *stage) lookUp(ctx context.Context, rows []stored, entries []inbox.Entry, keys []string) error {
	if _, err := inbox.Seen(ctx, st.site.pool, st.consumer, entries, nil); err != nil {
		return err
	}

	batch := &pgx.Batch{}
	failed.QueueKeys(batch, st.consumer, keys)

	if err := st.site.pool.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}

	events, err := decoded[fulfilment.PaymentRequested](rows)
	if err != nil {
		return err
	}

	_, err = st.admit(ctx, st.site.pool, events)

	return err
}

func (r stored) entry() inbox.Entry {
	e := inbox.Entry{ID: r.ID, Fingerprint: event.Fingerprint(r.Payload), Correlation: r.Correlation}
	if r.Causation != nil {
		e.Causation = *r.Causation
	}

	return e
}

func decoded[P event.Payload](rows []stored) ([]event.Event[P], error) {
	events := make([]event.Event[P], len(rows))

	for i, r := range rows {
		payload, err := event.Decode[P](r.Payload)
		if err != nil {
			return nil, err
		}

		events[i] = event.Event[P]{Meta: event.Meta{ID: r.ID, Correlation: r.Correlation}, Payload: payload}
	}

	return events, nil
}

// batchOf adapts a batch handler.
func batchOf[P event.Payload](handle func(context.Context, pgx.Tx, []event.Event[P]) ([]event.Outgoing, error),
) func(context.Context, pgx.Tx, []stored) ([]event.Outgoing, error) {
	return func(ctx context.Context, tx pgx.Tx, rows []stored) ([]event.Outgoing, error) {
		events, err := decoded[P](rows)
		if err != nil {
			return nil, err
		}

		return handle(ctx, tx, events)
	}
}

// charges returns the payment request handler, including its effect.
func charges(process *fulfilment.Process) func(context.Context, pgx.Tx, []stored) ([]event.Outgoing, error) {
	return func(ctx context.Context, tx pgx.Tx, rows []stored) ([]event.Outgoing, error) {
		events, err := decoded[fulfilment.PaymentRequested](rows)
		if err != nil {
			return nil, err
		}

		charged := make([]fulfilment.Charged, len(events))

		for i, e := range events {
			outcome, err := process.Charge(ctx, e)
			if err != nil {
				return nil, err
			}

			charged[i] = fulfilment.Charged{Event: e, Result: &outcome}
		}

		return process.Settle(ctx, tx, charged)
	}
}
