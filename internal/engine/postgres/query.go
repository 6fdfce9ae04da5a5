package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Collect runs a query and returns its rows, each read by scan.
func Collect[T any](ctx context.Context, db Querier, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}

	return pgx.CollectRows(rows, scan)
}

// Column returns one value of each item, in order: an argument for unnest.
func Column[T, V any](items []T, value func(T) V) []V {
	column := make([]V, len(items))
	for i, item := range items {
		column[i] = value(item)
	}

	return column
}
