package order

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Service reads and writes orders.
type Service struct {
	pool *pgxpool.Pool
}

// NewService returns a service on pool.
func NewService(pool *pgxpool.Pool) *Service { return &Service{pool: pool} }

// NotFound returns the error for an order that does not exist.
func NotFound(id string) error { return event.Missing("order", id) }

// Change is an order after new events, with those events.
type Change struct {
	Order  Order
	Events []eventstore.Data
	// MessageID is the message that caused the events.
	MessageID uuid.UUID
}

const (
	columns      = `id, status, version, trim_scale(total_amount)::text, currency, lines`
	selectOrders = `SELECT ` + columns + ` FROM orders WHERE id = ANY($1)`
)

// Find returns the orders that exist, by id, without locking them.
func (s *Service) Find(ctx context.Context, db postgres.Querier, ids []string) (map[string]Order, error) {
	return load(ctx, db, selectOrders, ids)
}

// Lock returns the orders that exist, by id, and locks their rows until the
// transaction ends.
func (s *Service) Lock(ctx context.Context, tx pgx.Tx, ids []string) (map[string]Order, error) {
	return load(ctx, tx, selectOrders+` ORDER BY id FOR NO KEY UPDATE`, ids)
}

func load(ctx context.Context, db postgres.Querier, sql string, ids []string) (map[string]Order, error) {
	list, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Order], sql, ids)
	if err != nil {
		return nil, fmt.Errorf("loading orders: %w", err)
	}

	orders := make(map[string]Order, len(list))
	for _, o := range list {
		orders[o.ID] = o
	}

	return orders, nil
}

// Recall replaces entries of orders with the folds of their streams, which
// include the captures. The caller holds the locks on the orders, or only reads.
func (s *Service) Recall(ctx context.Context, db postgres.Querier, orders map[string]Order, ids []string) error {
	if len(ids) == 0 {
		return nil
	}

	streams := postgres.Column(ids, Stream)
	slices.Sort(streams)

	loaded, err := eventstore.Load(ctx, db, slices.Compact(streams), noSnapshots)
	if err != nil {
		return err
	}

	for _, id := range ids {
		folded, err := Fold(id, loaded[Stream(id)].Events)
		if err != nil {
			return err
		}

		orders[id] = folded
	}

	return nil
}

// noSnapshots matches no snapshot: order streams are too short to need one.
const noSnapshots = 0

// Insert queues writes that store new orders with their events. A duplicate id violates
// the primary key.
func (s *Service) Insert(writes *pgx.Batch, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}

	postgres.Queue(writes, "inserting orders", `
		INSERT INTO orders (id, status, version, total_amount, currency, lines)
		SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::text[]::numeric[], $5::text[], $6::jsonb[]) AS o (id)
		ORDER BY id`,
		postgres.Column(changes, func(c Change) string { return c.Order.ID }),
		postgres.Column(changes, func(c Change) string { return string(c.Order.Status) }),
		postgres.Column(changes, func(c Change) int { return c.Order.Version }),
		postgres.Column(changes, func(c Change) string { return c.Order.Total.String() }),
		postgres.Column(changes, func(c Change) string { return c.Order.Currency }),
		postgres.Column(changes, encodedLines))

	return queueEvents(writes, changes)
}

func encodedLines(c Change) string {
	data, _ := json.Marshal(c.Order.Lines) // encoding strings and integers cannot fail

	return string(data)
}

// Update queues writes that store changes to orders that the caller has locked, with their
// events. Several changes to one order must be in event order, but need not be adjacent.
func (s *Service) Update(writes *pgx.Batch, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}

	// Sorting groups the changes of each order: the last one has its final state,
	// and the events of a stream become adjacent.
	slices.SortStableFunc(changes, func(a, b Change) int { return strings.Compare(a.Order.ID, b.Order.ID) })

	final := make([]Order, 0, len(changes))

	for i, c := range changes {
		if i+1 == len(changes) || changes[i+1].Order.ID != c.Order.ID {
			final = append(final, c.Order)
		}
	}

	// Without ANY, a join that was planned when the table was small reads all of it.
	postgres.Queue(writes, "updating orders", `
		UPDATE orders o SET status = c.status, version = c.version, updated_at = now()
		FROM unnest($1::text[], $2::text[], $3::int[]) AS c (id, status, version)
		WHERE o.id = c.id AND o.id = ANY($1)`,
		postgres.Column(final, func(o Order) string { return o.ID }),
		postgres.Column(final, func(o Order) string { return string(o.Status) }),
		postgres.Column(final, func(o Order) int { return o.Version }))

	return queueEvents(writes, changes)
}

// queueEvents queues the write of the events of orders that are new or locked.
func queueEvents(writes *pgx.Batch, changes []Change) error {
	var records []eventstore.Record

	for _, c := range changes {
		for i, data := range c.Events {
			records = append(records, eventstore.Record{
				Stream:    Stream(c.Order.ID),
				Version:   c.Order.Version - len(c.Events) + i + 1,
				Data:      data,
				MessageID: c.MessageID,
				Held:      true,
			})
		}
	}

	return eventstore.Queue(writes, records)
}

// Details is an order with its history.
type Details struct {
	Order

	CreatedAt time.Time          `json:"created_at"`
	UpdatedAt time.Time          `json:"updated_at"`
	History   []eventstore.Event `db:"-"            json:"history"`
}

// Show returns an order with its history, or [NotFound].
func (s *Service) Show(ctx context.Context, id string) (Details, error) {
	tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return Details{}, fmt.Errorf("reading order %s: %w", id, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	found, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[Details], `SELECT `+columns+`, created_at, updated_at FROM orders WHERE id = $1`, id)
	if err != nil {
		return Details{}, fmt.Errorf("reading order %s: %w", id, err)
	}

	if len(found) == 0 {
		return Details{}, NotFound(id)
	}

	details := found[0]

	if details.History, err = eventstore.Read(ctx, tx, Stream(id)); err != nil {
		return Details{}, err
	}

	// A history that cannot be folded is shown without captures.
	if folded, err := Fold(id, details.History); err == nil {
		details.Captures = folded.Captures
	}

	return details, nil
}

// Summary is an order in a list.
type Summary struct {
	ID        string    `json:"id"`
	Status    Status    `json:"status"`
	Total     string    `json:"total_amount"`
	Currency  string    `json:"currency"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Count counts the orders that List lists; see [postgres.CountRows].
func (s *Service) Count(ctx context.Context, status Status) (int, error) {
	return postgres.CountRows(ctx, s.pool, `SELECT FROM orders WHERE $1 = '' OR status = $1`, string(status))
}

// Newest returns up to limit orders, most recently created first.
func (s *Service) Newest(ctx context.Context, limit int) ([]Summary, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Summary],
		`SELECT id, status, trim_scale(total_amount)::text, currency, updated_at FROM orders ORDER BY created_at DESC LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("listing the newest orders: %w", err)
	}

	return list, nil
}

// List returns up to limit orders, most recently changed first. An empty status
// selects all orders.
func (s *Service) List(ctx context.Context, status Status, limit int) ([]Summary, error) {
	if err := event.KnownName("status", status, Statuses); err != nil {
		return nil, err
	}

	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Summary], `
		SELECT id, status, trim_scale(total_amount)::text, currency, updated_at FROM orders
		WHERE $1 = '' OR status = $1
		ORDER BY updated_at DESC LIMIT $2`, string(status), limit)
	if err != nil {
		return nil, fmt.Errorf("listing orders: %w", err)
	}

	return list, nil
}
