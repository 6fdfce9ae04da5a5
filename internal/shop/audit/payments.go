package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// transactions checks that payments do not share captures.
func transactions() invariant.Source {
	return invariant.Source{
		Name:  "payments",
		Count: `SELECT count(*) FROM payments`,
		Rows: `
			SELECT transaction_id AS id, count(*) AS uses, min(order_id) AS first, max(order_id) AS last
			FROM payments WHERE transaction_id IS NOT NULL
			GROUP BY transaction_id HAVING count(*) > 1`,
		Checks: []invariant.Check{{
			Name:   "transactions",
			Means:  "A capture pays for one order.",
			Advice: "Ask the payment provider which order the capture belongs to; the other was delivered without a payment.",
			Fault:  `format('pays for %s orders, among them %s and %s', uses, first, last)`,
		}},
	}
}

// captures checks payments against the gateway's own record.
func captures(gateway payment.Gateway) invariant.Source {
	return invariant.Source{
		Name: "captures",
		Prepare: func(ctx context.Context, conn *pgx.Conn, options invariant.Options) error {
			return loadLedger(ctx, conn, gateway, options.Ledger)
		},
		Count: `SELECT count(*) FROM audit_ledger`,
		Rows: `
			SELECT coalesce(p.order_id, l.order_id) AS id, l.transaction_id AS theirs, l.order_id, l.amount::numeric AS their_amount, l.currency AS their_currency, l.refunded::numeric,
			       p.transaction_id AS ours, p.status, p.amount, p.currency,
			       l.at > read.at - @older::interval OR o.updated_at > read.at - @older::interval OR h.key IS NOT NULL AS in_progress,
			       p.recorded_at > read.at - @older::interval OR p.recorded_at < read.at - @ledger::interval + interval '1 day' AS out_of_range
			FROM audit_ledger l
			FULL JOIN (SELECT * FROM payments WHERE status IN ('captured', 'refunded')) AS p ON p.transaction_id = l.transaction_id
			LEFT JOIN orders o ON o.id = coalesce(p.order_id, l.order_id)
			LEFT JOIN (` + invariant.Pending + `) AS h ON h.key = o.id
			CROSS JOIN audit_ledger_read AS read`,
		Checks: []invariant.Check{{
			Name:  "ledger",
			Means: "The payments agree with the payment gateway's own record.",
			Advice: "A capture that is not recorded must be refunded through the provider, unless its order still waits for it. " +
				"If the gateway does not know a payment, check that the service uses the account that took the money.",
			Fault: `CASE
				WHEN ours IS NULL AND NOT coalesce(in_progress, false) AND refunded < their_amount
					THEN format('the gateway captured %s %s (%s), but no payment is recorded', trim_scale(their_amount), their_currency, theirs)
				WHEN theirs IS NULL AND NOT out_of_range THEN format('has a payment of %s %s (%s) that the gateway does not know', trim_scale(amount), currency, ours)
				WHEN amount <> their_amount OR currency <> their_currency
					THEN format('%s %s is recorded, but the gateway captured %s %s', trim_scale(amount), currency, trim_scale(their_amount), their_currency)
				WHEN status = 'captured' AND refunded > 0 AND NOT coalesce(in_progress, false)
					THEN format('is recorded as captured, but the gateway refunded %s %s', trim_scale(refunded), their_currency)
				WHEN status = 'refunded' AND refunded < their_amount AND NOT coalesce(in_progress, false)
					THEN format('is recorded as refunded, but the gateway refunded %s of %s %s', trim_scale(refunded), trim_scale(their_amount), their_currency) END`,
		}},
	}
}

// ledgerChunk is the number of captures in memory at a time.
const ledgerChunk = 5000

// loadLedger copies the recent part of the gateway's record into a temporary table. It
// does so in short transactions before the snapshot: if the snapshot's transaction wrote
// anything, it would have an id, and projections would wait for it.
func loadLedger(ctx context.Context, conn *pgx.Conn, gateway payment.Gateway, last time.Duration) error {
	// The time is taken before reading, because the copy may lack later captures.
	_, err := conn.Exec(ctx, `
		CREATE TEMPORARY TABLE audit_ledger (
			order_id text NOT NULL, transaction_id text NOT NULL, amount text NOT NULL, currency text NOT NULL,
			refunded text NOT NULL, at timestamptz NOT NULL);
		CREATE TEMPORARY TABLE audit_ledger_read AS SELECT clock_timestamp() AS at`)
	if err != nil {
		return fmt.Errorf("creating a table for the gateway's record: %w", err)
	}

	chunk := make([][]any, 0, ledgerChunk)
	flush := func() error {
		_, err := conn.CopyFrom(ctx, pgx.Identifier{"audit_ledger"},
			[]string{"order_id", "transaction_id", "amount", "currency", "refunded", "at"}, pgx.CopyFromRows(chunk))
		chunk = chunk[:0]

		return err
	}

	err = gateway.Ledger(ctx, time.Now().Add(-last), func(e payment.Entry) error {
		chunk = append(chunk, []any{e.OrderID, e.TransactionID, e.Amount.String(), e.Currency, e.Refunded.String(), e.At})
		if len(chunk) < ledgerChunk {
			return nil
		}

		return flush()
	})
	if err != nil {
		return fmt.Errorf("reading the payment gateway's record: %w", err)
	}

	if err = flush(); err == nil {
		_, err = conn.Exec(ctx, `ANALYZE audit_ledger`)
	}

	if err != nil {
		return fmt.Errorf("storing the payment gateway's record: %w", err)
	}

	return nil
}
