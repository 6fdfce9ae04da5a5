package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

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

// MaxCount bounds counts: above it, the exact number does not matter.
const MaxCount = 10_000

// CountRows returns the number of rows of a query, or MaxCount + 1 if it has more
// than MaxCount.
func CountRows(ctx context.Context, db Querier, sql string, args ...any) (int, error) {
	counts, err := Collect(ctx, db, pgx.RowTo[int], fmt.Sprintf(`SELECT count(*)::int FROM (%s LIMIT %d) AS counted`, sql, MaxCount+1), args...)
	if err != nil {
		return 0, fmt.Errorf("counting: %w", err)
	}

	return counts[0], nil
}

// Now returns the time on the server's clock, which all processes share.
func Now(ctx context.Context, db Querier) (time.Time, error) {
	now, err := Collect(ctx, db, pgx.RowTo[time.Time], `SELECT clock_timestamp()`)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the server's clock: %w", err)
	}

	return now[0], nil
}

// Map runs a query with two columns and returns a map from the first to the second.
func Map[K comparable, V any](ctx context.Context, db Querier, sql string, args ...any) (map[K]V, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}

	var (
		key   K
		value V
		found = map[K]V{}
	)

	_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error {
		found[key] = value

		return nil
	})

	return found, err
}

// Where builds the condition of a query.
type Where struct {
	conditions []string
	// Args holds the query's arguments. Before calling And, set the arguments that precede
	// those of the condition.
	Args []any
}

// And adds a condition if set is true. The condition refers to its value as $?.
func (w *Where) And(set bool, condition string, value ...any) {
	if set {
		w.Args = append(w.Args, value...)
		w.conditions = append(w.conditions, strings.ReplaceAll(condition, "$?", "$"+strconv.Itoa(len(w.Args))))
	}
}

// String returns the combined condition, or "true" if none was added.
func (w *Where) String() string {
	return strings.Join(append([]string{"true"}, w.conditions...), " AND ")
}

// Column returns one value of each item, in order, for use with unnest.
func Column[T, V any](items []T, value func(T) V) []V {
	column := make([]V, len(items))
	for i, item := range items {
		column[i] = value(item)
	}

	return column
}
