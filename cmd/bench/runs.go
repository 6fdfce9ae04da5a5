package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// price is the amount of every order.
var price = money.MustParse("9.99")

// throughput measures orders that are on the topic before the service starts, from
// the first creation to the last completion.
func (l *lab) throughput(ctx context.Context, kind string, skus int, warmup bool) (figures, error) {
	return l.drain(ctx, kind, "serve", skus, l.count(l.orders, warmup))
}

func (l *lab) naive(ctx context.Context, kind string, warmup bool) (figures, error) {
	return l.drain(ctx, kind, "naive", l.skus, l.count(l.naiveOrders, warmup))
}

func (l *lab) count(orders int, warmup bool) int {
	if warmup {
		return min(orders, 3000)
	}

	return orders
}

func (l *lab) drain(ctx context.Context, kind, role string, skus, orders int) (figures, error) {
	s, err := l.newSite(ctx, kind, skus)
	if err != nil {
		return nil, err
	}
	defer s.close()

	return s.drain(ctx, role, skus, orders)
}

// drain publishes orders, then starts the service and measures it.
func (s *site) drain(ctx context.Context, role string, skus, orders int) (figures, error) {
	if role == "naive" {
		s.cfg.Broker.Kafka.Partitions = naiveInHand
	}

	from, err := s.newSource(ctx)
	if err != nil {
		return nil, err
	}

	err = from.preload(ctx, orders, func(i int) event.Payload { return newOrder(i, skus, "order-"+strconv.Itoa(i)) })
	from.close()

	if err != nil {
		return nil, err
	}

	wal, before := s.wal(ctx), s.cpu()

	child, err := s.start(ctx, role)
	if err != nil {
		return nil, err
	}

	if err := s.completed(ctx, orders); err != nil {
		return nil, err
	}

	batch, n := s.meanBatch(ctx), float64(orders)
	used := s.cpu().since(before)
	wal = s.wal(ctx) - wal

	peak, own, err := child.stop()
	if err != nil {
		return nil, err
	}

	if s.cfg.Broker.Kind == broker.Embedded {
		s.lab.batch = max(1, int(batch))
	}

	elapsed, err := s.elapsed(ctx)

	return figures{
		"orders/s": n / elapsed, "batch": batch, "RSS MB": peak,
		"CPU ms/order": (own + used.postgres + used.broker) / n * 1000, "service": own / n * 1000, "postgres": used.postgres / n * 1000, "broker": used.broker / n * 1000,
		"WAL KB/order": wal / n / 1024,
	}, err
}

// completed waits until n orders are sold. It queries the small table.
func (s *site) completed(ctx context.Context, n int) error {
	return until(ctx, func() (done bool, err error) {
		var sold int
		err = s.pool.QueryRow(ctx, `SELECT COALESCE(sum(sold), 0) FROM stock`).Scan(&sold)

		return sold >= n, err
	})
}

// elapsed is the time from the first order's creation to the last's completion.
func (s *site) elapsed(ctx context.Context) (seconds float64, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(created_at))::float8 FROM orders`).Scan(&seconds)

	return seconds, err
}

func (s *site) wal(ctx context.Context) (bytes float64) {
	// 0 means that the request failed.
	_ = s.pool.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8`).Scan(&bytes)

	return bytes
}

// latency measures the time from publishing an order to the commit that completes
// it, at a steady rate.
func (l *lab) latency(ctx context.Context, kind string, rate int, warmup bool) (figures, error) {
	s, err := l.newSite(ctx, kind, l.skus)
	if err != nil {
		return nil, err
	}
	defer s.close()

	from, err := s.newSource(ctx)
	if err != nil {
		return nil, err
	}
	defer from.close()

	child, err := s.start(ctx, "serve")
	if err != nil {
		return nil, err
	}

	n := rate * l.seconds
	if warmup {
		n = rate
	}

	if err := from.steadily(ctx, n, rate, l.skus); err != nil {
		return nil, err
	}

	if err := s.completed(ctx, n); err != nil {
		return nil, err
	}

	peak, _, err := child.stop()
	if err != nil {
		return nil, err
	}

	latencies, err := s.latencies(ctx, `pg_xact_commit_timestamp(xmin)`)
	if err != nil {
		return nil, err
	}

	// The part up to the first transaction.
	first, err := s.latencies(ctx, `created_at`)
	if err != nil {
		return nil, err
	}

	return figures{
		"first tx p50 ms": quantile(first, 0.50),
		"p50 ms":          quantile(latencies, 0.50), "p95 ms": quantile(latencies, 0.95), "p99 ms": quantile(latencies, 0.99), "RSS MB": peak,
	}, nil
}

// steadily publishes n orders at a rate, whether or not earlier ones are complete.
// An id contains the time at which its order was due.
func (s *source) steadily(ctx context.Context, n, rate, skus int) error {
	var (
		wait   sync.WaitGroup
		failed atomic.Value
		begin  = time.Now()
	)

	for i := range n {
		due := begin.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))

		wait.Go(func() {
			id := fmt.Sprintf("%d-%d", due.UnixMicro(), i)
			if err := s.publish(ctx, newOrder(i, skus, id)); err != nil {
				failed.Store(err)
			}
		})
	}

	wait.Wait()

	err, _ := failed.Load().(error)

	return err
}

// latencies returns the sorted latencies until an SQL expression in milliseconds.
// It ignores the first second, in which connections are opened.
func (s *site) latencies(ctx context.Context, until string) ([]float64, error) {
	rows, err := s.pool.Query(ctx, `
		WITH done AS (
			SELECT split_part(id, '-', 1)::float8 / 1e6 AS due, extract(epoch FROM `+until+`)::float8 AS at FROM orders
		)
		SELECT (at - due) * 1000 FROM done WHERE due >= (SELECT min(due) + 1 FROM done)`)
	if err != nil {
		return nil, err
	}

	list, err := pgx.CollectRows(rows, pgx.RowTo[float64])
	slices.Sort(list)

	return list, err
}

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}

	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// ceiling runs only the statements of the pipeline, in batches of the size of the
// embedded run, two at a time.
func (l *lab) ceiling(ctx context.Context, warmup bool) (figures, error) {
	s, err := l.newSite(ctx, broker.Embedded, l.skus)
	if err != nil {
		return nil, err
	}
	defer s.close()

	const workers = 2

	var (
		n       = l.count(l.orders, warmup)
		next    = make(chan int)
		wait    sync.WaitGroup
		failed  atomic.Value
		process = fulfilment.NewProcess(fulfilment.DefaultConfig(), order.NewService(s.pool), inventory.NewService(s.pool), payment.NewSimulated(), nil)
		wal     = s.wal(ctx)
		before  = s.cpu()
	)

	for range workers {
		wait.Go(func() {
			for from := range next {
				if err := s.pipeline(ctx, process, from, min(from+l.batch, n)); err != nil {
					failed.Store(err)
				}
			}
		})
	}

	for from := 0; from < n; from += l.batch {
		next <- from
	}

	close(next)
	wait.Wait()

	if err, ok := failed.Load().(error); ok {
		return nil, err
	}

	used := s.cpu().since(before)
	elapsed, err := s.elapsed(ctx)

	return figures{
		"orders/s": float64(n) / elapsed, "batch": float64(l.batch),
		"CPU ms/order": (used.bench + used.postgres) / float64(n) * 1000, "WAL KB/order": (s.wal(ctx) - wal) / float64(n) / 1024,
	}, err
}

// pipeline runs the three transactions of a batch of orders.
func (s *site) pipeline(ctx context.Context, process *fulfilment.Process, from, to int) error {
	var (
		created   []event.Event[fulfilment.OrderCreated]
		charged   []fulfilment.Charged
		completed []event.Event[fulfilment.OrderCompleted]
	)

	for i := from; i < to; i++ {
		id := "order-" + strconv.Itoa(i)
		amount := price
		outcome := payment.Outcome{TransactionID: "txn_" + id}
		created = append(created, newEvent(newOrder(i, s.lab.skus, id)))
		charged = append(charged, fulfilment.Charged{Event: newEvent(fulfilment.PaymentRequested{OrderID: id, Amount: &amount}), Result: &outcome})
		completed = append(completed, newEvent(fulfilment.OrderCompleted{OrderID: id}))
	}

	err := s.step(ctx, "fulfilment.place", ids(created), func(tx pgx.Tx) ([]event.Outgoing, error) { return process.Place(ctx, tx, created) })
	if err != nil {
		return err
	}

	err = s.step(ctx, "fulfilment.charge", ids(charged), func(tx pgx.Tx) ([]event.Outgoing, error) { return process.Settle(ctx, tx, charged) })
	if err != nil {
		return err
	}

	return s.step(ctx, "fulfilment.complete", ids(completed), func(tx pgx.Tx) ([]event.Outgoing, error) { return process.Complete(ctx, tx, completed) })
}

func newEvent[P event.Payload](p P) event.Event[P] {
	return event.Event[P]{Meta: event.Start(p).Meta, Payload: p}
}

type identified interface{ Identity() event.Meta }

func ids[E identified](events []E) []inbox.Entry {
	entries := make([]inbox.Entry, len(events))
	for i, e := range events {
		entries[i] = inbox.Entry{ID: e.Identity().ID}
	}

	return entries
}

func (s *site) step(ctx context.Context, consumer string, entries []inbox.Entry, handle func(pgx.Tx) ([]event.Outgoing, error)) error {
	var (
		sent  []event.Outgoing
		first int64
	)

	err := postgres.InTx(ctx, s.pool, func(tx pgx.Tx) (err error) {
		if err := inbox.ClaimNew(ctx, tx, consumer, entries, &pgx.Batch{}); err != nil {
			return err
		}

		if sent, err = handle(tx); err != nil || len(sent) == 0 {
			return err
		}

		if err := tx.QueryRow(ctx, `SELECT last_value FROM outbox_seq_seq`).Scan(&first); err != nil {
			return err
		}

		return outbox.Append(ctx, tx, sent)
	})
	if err != nil || len(sent) == 0 {
		return err
	}

	// What the relay does after publishing. No index has the ids of messages.
	messages := make([]uuid.UUID, len(sent))
	for i, m := range sent {
		messages[i] = m.ID
	}

	_, err = s.pool.Exec(ctx, `DELETE FROM outbox WHERE seq >= $1 AND message_id = ANY($2) AND available_at IS NULL`, first, messages)

	return err
}
