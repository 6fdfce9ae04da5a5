package main

import (
	"context"
	"fmt"
	"time"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/shop/audit"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// daysBack is the number of days, including today, that the generated rows span.
const daysBack = 6

// idAt returns an SQL expression for a UUIDv7 with the time at, different for each n and
// salt. Older servers have no function for this.
func idAt(at, salt string) string {
	digest := "md5(n || '" + salt + "')"

	return fmt.Sprintf(`(lpad(to_hex((extract(epoch FROM %s) * 1000)::bigint), 12, '0') || '7' || substr(%s, 1, 3) || '8' || substr(%s, 4, 15))::uuid`,
		at, digest, digest)
}

// scattered is an SQL expression that maps each n to a time in the last few days.
const scattered = `(now() - n %% (%d * 86400) * interval '1 second')`

// daysOfPast creates inbox partitions for the generated days.
func (s *site) daysOfPast(ctx context.Context) error {
	for day := range daysBack {
		if err := inbox.Partitions.Ensure(ctx, s.pool, time.Now().AddDate(0, 0, -day)); err != nil {
			return err
		}
	}

	return nil
}

// history inserts n orders as the pipeline leaves them: 90% are completed, 5% declined,
// 4% found no stock, and 1% are waiting for a payment that is in the outbox.
func (s *site) history(ctx context.Context, n, skus int) error {
	if err := s.daysOfPast(ctx); err != nil {
		return err
	}

	at := fmt.Sprintf(scattered, daysBack-1)
	placed, charged, completed := idAt("at", "place"), idAt("at", "charge"), idAt("at", "complete")

	_, err := s.pool.Exec(ctx, fmt.Sprintf(`
		CREATE UNLOGGED TABLE plan AS
		SELECT n, 'order-' || n AS id, 'sku_' || n %% %d AS product, n %% 100 AS share, %s AS at FROM generate_series(1, %d) AS n`, skus, at, n))
	if err != nil {
		return fmt.Errorf("generating orders: %w", err)
	}

	for _, statement := range []string{
		`INSERT INTO orders (id, status, version, total_amount, currency, lines, created_at, updated_at)
		 SELECT id, CASE WHEN share < 90 THEN 'completed' WHEN share < 95 THEN 'payment_failed' WHEN share < 99 THEN 'inventory_unavailable' ELSE 'inventory_reserved' END,
		        CASE WHEN share < 90 THEN 4 WHEN share < 95 THEN 3 ELSE 2 END, 9.99, 'USD',
		        jsonb_build_array(jsonb_build_object('product_id', product, 'quantity', 1)), at, at
		 FROM plan`,
		`INSERT INTO events (stream, version, type, data, message_id, recorded_at)
		 SELECT 'order-' || id, 1, 'OrderCreated', jsonb_build_object('total_amount', 9.99, 'currency', 'USD',
		        'lines', jsonb_build_array(jsonb_build_object('product_id', product, 'quantity', 1))), ` + placed + `, at FROM plan
		 UNION ALL
		 SELECT 'order-' || id, 2, 'InventoryReserved', '{}', ` + placed + `, at FROM plan WHERE share < 95 OR share = 99
		 UNION ALL
		 SELECT 'order-' || id, 2, 'InventoryUnavailable', '{"product_id": "x", "requested": 1, "available": 0}', ` + placed + `, at FROM plan WHERE share BETWEEN 95 AND 98
		 UNION ALL
		 SELECT 'order-' || id, 3, 'OrderPaid', jsonb_build_object('transaction_id', 'txn_' || id), ` + charged + `, at FROM plan WHERE share < 90
		 UNION ALL
		 SELECT 'order-' || id, 3, 'PaymentFailed', '{"reason": "declined"}', ` + charged + `, at FROM plan WHERE share BETWEEN 90 AND 94
		 UNION ALL
		 SELECT 'order-' || id, 4, 'OrderCompleted', '{}', ` + completed + `, at FROM plan WHERE share < 90`,
		`INSERT INTO payments (order_id, status, amount, currency, transaction_id, decline_reason, recorded_at)
		 SELECT id, CASE WHEN share < 90 THEN 'captured' ELSE 'declined' END, 9.99, 'USD',
		        CASE WHEN share < 90 THEN 'txn_' || id END, CASE WHEN share >= 90 THEN 'declined' END, at
		 FROM plan WHERE share < 95`,
		`INSERT INTO inbox (consumer, message_id, day, fingerprint, applied_at, correlation_id, causation_id)
		 SELECT 'fulfilment.place', ` + placed + `, (at AT TIME ZONE 'UTC')::date, n, at, NULL, NULL FROM plan
		 UNION ALL
		 SELECT 'fulfilment.charge', ` + charged + `, (at AT TIME ZONE 'UTC')::date, n, at, ` + placed + `, ` + placed + ` FROM plan WHERE share < 95
		 UNION ALL
		 SELECT 'fulfilment.complete', ` + completed + `, (at AT TIME ZONE 'UTC')::date, n, at, ` + placed + `, ` + charged + ` FROM plan WHERE share < 90`,
		`INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload)
		 SELECT 0, 'payments.requested', id, ` + charged + `, ` + placed + `, '{}' FROM plan WHERE share = 99`,
		`UPDATE stock SET reserved = p.reserved, sold = p.sold, available = available - p.reserved - p.sold
		 FROM (SELECT product, count(*) FILTER (WHERE share = 99) AS reserved, count(*) FILTER (WHERE share < 90) AS sold FROM plan GROUP BY product) AS p
		 WHERE product_id = p.product`,
		`DROP TABLE plan`,
		`VACUUM ANALYZE`,
	} {
		if _, err := s.pool.Exec(ctx, statement); err != nil {
			return fmt.Errorf("generating orders: %w", err)
		}
	}

	return nil
}

// record is a gateway whose ledger matches history.
type record struct {
	payment.Gateway

	site   *site
	orders int
}

// Ledger implements payment.Gateway.
func (r record) Ledger(_ context.Context, _ time.Time, fn func(payment.Entry) error) error {
	for n := range r.orders {
		if (n+1)%100 >= 90 {
			continue
		}

		id := fmt.Sprint("order-", n+1)
		entry := payment.Entry{OrderID: id, TransactionID: "txn_" + id, Amount: price, Currency: "USD", Refunded: money.MustParse("0"), At: time.Now().AddDate(0, 0, -1)}

		if err := fn(entry); err != nil {
			return err
		}
	}

	return nil
}

// audited measures an audit of a database with a million orders and no
// discrepancy.
func (l *lab) audited(ctx context.Context, _ bool) (figures, error) {
	n := l.events

	s, err := l.newSite(ctx, broker.Embedded)
	if err != nil {
		return nil, err
	}
	defer s.close()

	if err := s.supply(ctx, l.skus); err != nil {
		return nil, err
	}

	started := time.Now()

	if err := s.history(ctx, n, l.skus); err != nil {
		return nil, err
	}

	generated := time.Since(started).Seconds()

	report, err := audit.New(s.pool, record{site: s, orders: n}).Run(ctx, invariant.Options{})
	if err != nil {
		return nil, err
	}

	return figures{auditSeconds: report.Seconds, rows: float64(n), generatedSeconds: generated}, report.Err()
}
