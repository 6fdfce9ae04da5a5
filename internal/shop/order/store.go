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
	"github.com/millracehq/millrace/internal/shop/money"
)

// Service reads and writes orders.
type Service struct {
	pool *pgxpool.Pool
}

// NewService returns a service on pool.
func NewService(pool *pgxpool.Pool) *Service { return &Service{pool: pool} }

// NotFound is the error of an order that does not exist.
func NotFound(id string) error { return event.Missing("order", id) }

// Change is an order after new events.
type Change struct {
	Order  Order
	Events []eventstore.Data
	// MessageID is the message that caused the events.
	MessageID uuid.UUID
}

// Evolve applies events to o and returns the change to save.
func Evolve(o Order, messageID uuid.UUID, events ...eventstore.Data) (Change, error) {
	for _, data := range events {
		next, err := o.Apply(data)
		if err != nil {
			return Change{}, err
		}

		o = next
	}

	return Change{Order: o, Events: events, MessageID: messageID}, nil
}

func (c Change) records() []eventstore.Record {
	records := make([]eventstore.Record, len(c.Events))
	for i, data := range c.Events {
		records[i] = eventstore.Record{
			Stream:    Stream(c.Order.ID),
			Version:   c.Order.Version - len(c.Events) + i + 1,
			Data:      data,
			MessageID: c.MessageID,
		}
	}

	return records
}

// Find returns those of the orders that exist, by id, without locking them.
func (s *Service) Find(ctx context.Context, db postgres.Querier, ids []string) (map[string]Order, error) {
	return s.load(ctx, db, `SELECT id, status, version, trim_scale(total_amount)::text, currency, lines FROM orders WHERE id = ANY($1)`, ids)
}

// Lock returns those of the orders that exist, by id, and holds their row
// locks until the transaction ends.
func (s *Service) Lock(ctx context.Context, tx pgx.Tx, ids []string) (map[string]Order, error) {
	return s.load(ctx, tx, `SELECT id, status, version, trim_scale(total_amount)::text, currency, lines FROM orders WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE`, ids)
}

func (s *Service) load(ctx context.Context, db postgres.Querier, sql string, ids []string) (map[string]Order, error) {
	rows, err := db.Query(ctx, sql, ids)
	if err != nil {
		return nil, fmt.Errorf("loading orders: %w", err)
	}

	orders := make(map[string]Order, len(ids))

	var (
		o     Order
		total string
		lines []byte
	)

	_, err = pgx.ForEachRow(rows, []any{&o.ID, &o.Status, &o.Version, &total, &o.Currency, &lines}, func() (err error) {
		found := o
		if found.Total, err = money.Parse(total); err != nil {
			return err
		}

		if err := json.Unmarshal(lines, &found.Lines); err != nil {
			return err
		}

		orders[found.ID] = found

		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading orders: %w", err)
	}

	return orders, nil
}

// Recall reads the streams of these orders and puts their folds, which know
// the captures too, in place of what orders holds. The caller has the orders
// locked, or looks without deciding.
func (s *Service) Recall(ctx context.Context, db postgres.Querier, orders map[string]Order, ids []string) error {
	if len(ids) == 0 {
		return nil
	}

	streams := make([]string, len(ids))
	for i, id := range ids {
		streams[i] = Stream(id)
	}

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

// noSnapshots is the schema of no snapshot: the streams of orders are short.
const noSnapshots = 0

// Insert stores new orders with their events. An id that exists violates the
// primary key.
func (s *Service) Insert(ctx context.Context, tx pgx.Tx, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}

	var (
		ids        = make([]string, len(changes))
		statuses   = make([]string, len(changes))
		versions   = make([]int32, len(changes))
		totals     = make([]string, len(changes))
		currencies = make([]string, len(changes))
		lines      = make([]string, len(changes))
	)

	for i, c := range changes {
		encoded, err := json.Marshal(c.Order.Lines)
		if err != nil {
			return fmt.Errorf("encoding lines of order %s: %w", c.Order.ID, err)
		}

		ids[i], statuses[i], versions[i] = c.Order.ID, string(c.Order.Status), int32(c.Order.Version) //nolint:gosec // few events
		totals[i], currencies[i], lines[i] = c.Order.Total.String(), c.Order.Currency, string(encoded)
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO orders (id, status, version, total_amount, currency, lines)
		SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::text[]::numeric[], $5::text[], $6::jsonb[])`,
		ids, statuses, versions, totals, currencies, lines)
	if err != nil {
		return fmt.Errorf("inserting orders: %w", err)
	}

	return s.append(ctx, tx, changes)
}

// Update stores changes of orders that the caller has locked, with their
// events. Those of one order are in sequence; they need not be neighbours.
func (s *Service) Update(ctx context.Context, tx pgx.Tx, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}

	// Side by side, so that the last one of an order is known to be, and that
	// the events of a stream follow on each other.
	slices.SortStableFunc(changes, func(a, b Change) int { return strings.Compare(a.Order.ID, b.Order.ID) })

	var (
		ids      = make([]string, 0, len(changes))
		statuses = make([]string, 0, len(changes))
		versions = make([]int32, 0, len(changes))
	)

	for i, c := range changes {
		if i+1 < len(changes) && changes[i+1].Order.ID == c.Order.ID {
			continue
		}

		ids, statuses, versions = append(ids, c.Order.ID), append(statuses, string(c.Order.Status)), append(versions, int32(c.Order.Version)) //nolint:gosec // few events
	}

	_, err := tx.Exec(ctx, `
		UPDATE orders o SET status = c.status, version = c.version, updated_at = now()
		FROM unnest($1::text[], $2::text[], $3::int[]) AS c (id, status, version)
		WHERE o.id = c.id`, ids, statuses, versions)
	if err != nil {
		return fmt.Errorf("updating orders: %w", err)
	}

	return s.append(ctx, tx, changes)
}

func (s *Service) append(ctx context.Context, tx pgx.Tx, changes []Change) error {
	var records []eventstore.Record
	for _, c := range changes {
		records = append(records, c.records()...)
	}

	return eventstore.Append(ctx, tx, records)
}

// Details is an order with its history.
type Details struct {
	Order

	CreatedAt time.Time          `json:"created_at"`
	UpdatedAt time.Time          `json:"updated_at"`
	History   []eventstore.Event `json:"history"`
}

// Show returns an order with its history, or [NotFound].
func (s *Service) Show(ctx context.Context, id string) (Details, error) {
	tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return Details{}, fmt.Errorf("reading order %s: %w", id, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	found, err := s.Find(ctx, tx, []string{id})
	if err != nil {
		return Details{}, err
	}

	o, ok := found[id]
	if !ok {
		return Details{}, NotFound(id)
	}

	details := Details{Order: o}

	err = tx.QueryRow(ctx, `SELECT created_at, updated_at FROM orders WHERE id = $1`, id).Scan(&details.CreatedAt, &details.UpdatedAt)
	if err != nil {
		return Details{}, fmt.Errorf("reading order %s: %w", id, err)
	}

	if details.History, err = eventstore.Read(ctx, tx, Stream(id)); err != nil {
		return Details{}, err
	}

	// A history that does not fold is shown all the same.
	if folded, err := Fold(id, details.History); err == nil {
		details.Captures = folded.Captures
	}

	return details, nil
}

// Summary is a line in a list of orders.
type Summary struct {
	ID        string    `json:"id"`
	Status    Status    `json:"status"`
	Total     string    `json:"total_amount"`
	Currency  string    `json:"currency"`
	UpdatedAt time.Time `json:"updated_at"`
}

// List returns the orders that changed last, at most limit. An empty status
// means all.
func (s *Service) List(ctx context.Context, status Status, limit int) ([]Summary, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT id, status, trim_scale(total_amount)::text, currency, updated_at FROM orders
		WHERE $1 = '' OR status = $1
		ORDER BY updated_at DESC LIMIT $2`, string(status), limit)
	if err != nil {
		return nil, fmt.Errorf("listing orders: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Summary])
	if err != nil {
		return nil, fmt.Errorf("listing orders: %w", err)
	}

	return list, nil
}
