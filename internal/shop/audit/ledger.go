package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/shop/payment"
)

// ledgerChunk is how many captures are held in memory.
const ledgerChunk = 5000

// loadLedger copies the gateway's record of the last while into a temporary
// table of the session. It does so before the snapshot and in short
// transactions: a snapshot that writes would have a transaction id, and
// projections would wait for it.
func loadLedger(ctx context.Context, conn *pgx.Conn, gateway payment.Gateway, last time.Duration) error {
	// The time of the reading is from before it: what is recorded later need
	// not be in it.
	_, err := conn.Exec(ctx, `
		CREATE TEMPORARY TABLE audit_ledger (
			order_id text NOT NULL, transaction_id text NOT NULL, amount text NOT NULL, currency text NOT NULL,
			refunded text NOT NULL, at timestamptz NOT NULL);
		CREATE TEMPORARY TABLE audit_ledger_read AS SELECT clock_timestamp() AS at`)
	if err != nil {
		return fmt.Errorf("making a place for the gateway's record: %w", err)
	}

	var (
		chunk = make([][]any, 0, ledgerChunk)
		flush = func() error {
			_, err := conn.CopyFrom(ctx, pgx.Identifier{"audit_ledger"},
				[]string{"order_id", "transaction_id", "amount", "currency", "refunded", "at"}, pgx.CopyFromRows(chunk))
			chunk = chunk[:0]

			return err
		}
	)

	err = gateway.Ledger(ctx, time.Now().Add(-last), func(e payment.Entry) error {
		chunk = append(chunk, []any{e.OrderID, e.TransactionID, e.Amount.String(), e.Currency, e.Refunded.String(), e.At})
		if len(chunk) < ledgerChunk {
			return nil
		}

		return flush()
	})
	if err != nil {
		return fmt.Errorf("reading the record of the payment gateway: %w", err)
	}

	if err := flush(); err != nil {
		return fmt.Errorf("storing the record of the payment gateway: %w", err)
	}

	if _, err := conn.Exec(ctx, `ANALYZE audit_ledger`); err != nil {
		return fmt.Errorf("storing the record of the payment gateway: %w", err)
	}

	return nil
}
