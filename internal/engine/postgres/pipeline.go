package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// InPipeline is InTx with two round trips less. BEGIN is sent with the statements in first,
// before fn is called, and COMMIT with those in the batch that fn returns, which may be nil.
func InPipeline(ctx context.Context, pool *pgxpool.Pool, first *pgx.Batch, fn func(tx pgx.Tx) (last *pgx.Batch, err error)) (err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", err)
	}
	defer conn.Release() // closes the connection if it is still in the transaction, as after a panic

	begin := &pgx.Batch{}
	begin.BeginTx(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	begin.QueuedQueries[0].Fn = described("beginning transaction")
	begin.QueuedQueries = append(begin.QueuedQueries, first.QueuedQueries...)

	results := conn.SendBatch(ctx, begin)
	tx := results.Tx()

	defer func() {
		if err != nil {
			rollback(ctx, tx)
		}
	}()

	if err := results.Close(); err != nil {
		return err
	}

	last, err := fn(tx)
	if err != nil {
		return err
	}

	if conn.Conn().PgConn().TxStatus() == 'I' { // fn has ended the transaction
		return fmt.Errorf("committing transaction: %w", pgx.ErrTxClosed)
	}

	if last == nil {
		last = &pgx.Batch{}
	}

	last.Queue("commit").Fn = func(results pgx.BatchResults) error {
		tag, err := results.Exec()

		switch {
		case err != nil:
			return fmt.Errorf("committing transaction: %w", err)
		case tag.String() == "ROLLBACK":
			return fmt.Errorf("committing transaction: %w", pgx.ErrTxCommitRollback)
		default:
			return nil
		}
	}

	return conn.SendBatch(ctx, last).Close()
}

// rollback ends a transaction, even if ctx has ended. It does nothing after a commit.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()

	_ = tx.Rollback(ctx)
}

// Queue queues a statement without a result. doing describes it in its error.
func Queue(batch *pgx.Batch, doing, sql string, args ...any) {
	batch.Queue(sql, args...).Fn = described(doing)
}

// described returns a function that reads the result of a queued statement and describes
// it in its error.
func described(doing string) func(pgx.BatchResults) error {
	return func(results pgx.BatchResults) error {
		if _, err := results.Exec(); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}

		return nil
	}
}
