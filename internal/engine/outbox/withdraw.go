package outbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Withdraw deletes the messages on topics selected by match and returns their number.
// A relay that has already read a message still publishes it.
func Withdraw(ctx context.Context, tx pgx.Tx, topics []string, match func(key string, payload []byte) bool) (int64, error) {
	selected, err := Matching(ctx, tx, topics, match)
	if err != nil {
		return 0, err
	}

	tag, err := tx.Exec(ctx, `DELETE FROM outbox WHERE seq = ANY($1)`, selected)
	if err != nil {
		return 0, fmt.Errorf("withdrawing messages: %w", err)
	}

	return tag.RowsAffected(), nil
}

// Matching returns the sequence numbers of the messages on topics selected by match.
func Matching(ctx context.Context, db postgres.Querier, topics []string, match func(key string, payload []byte) bool) (selected []int64, err error) {
	rows, err := db.Query(ctx, `SELECT seq, key, payload FROM outbox WHERE topic = ANY($1)`, topics)
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}

	var (
		seq     int64
		key     string
		payload []byte
	)

	_, err = pgx.ForEachRow(rows, []any{&seq, &key, &payload}, func() error {
		if match(key, payload) {
			selected = append(selected, seq)
		}

		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}

	return selected, nil
}
