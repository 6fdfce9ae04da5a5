// Package inventory keeps the stock of each product: what is available,
// reserved and sold. Reserving is a pure decision; the tables around it are
// changed set by set.
package inventory

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Demand is what one order wants: quantities by product.
type Demand map[string]int64

// Shortage says which product an order could not get.
type Shortage struct {
	ProductID            string
	Requested, Available int64
}

// Allocate decides, in order, which demands the available stock can meet: each
// is met as a whole or not at all. It returns nil for a demand that is met,
// and takes its quantities from available. A product that is not in available
// does not exist and counts as 0.
func Allocate(available map[string]int64, demands []Demand) []*Shortage {
	shortages := make([]*Shortage, len(demands))

	for i, demand := range demands {
		shortages[i] = shortage(available, demand)
		if shortages[i] != nil {
			continue
		}

		for product, quantity := range demand {
			available[product] -= quantity
		}
	}

	return shortages
}

// shortage names the first product, in order of id, that falls short.
func shortage(available map[string]int64, demand Demand) *Shortage {
	var short *Shortage

	for product, quantity := range demand {
		if available[product] < quantity && (short == nil || product < short.ProductID) {
			short = &Shortage{ProductID: product, Requested: quantity, Available: available[product]}
		}
	}

	return short
}

// Service changes stock.
type Service struct {
	pool *pgxpool.Pool
}

// NewService returns a service on pool.
func NewService(pool *pgxpool.Pool) *Service { return &Service{pool: pool} }

// Lock returns what is available of the products of the demands. Their rows
// stay locked until tx ends. A product that does not exist is not there.
func (s *Service) Lock(ctx context.Context, tx pgx.Tx, demands []Demand) (available map[string]int64, err error) {
	products := productsOf(demands)

	rows, err := tx.Query(ctx, `
		SELECT product_id, available FROM stock
		WHERE product_id = ANY($1) ORDER BY product_id FOR NO KEY UPDATE`, products)
	if err != nil {
		return nil, fmt.Errorf("locking stock: %w", err)
	}

	available = make(map[string]int64, len(products))

	var (
		product string
		n       int64
	)

	_, err = pgx.ForEachRow(rows, []any{&product, &n}, func() error {
		available[product] = n

		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("locking stock: %w", err)
	}

	return available, nil
}

// Reserve holds available stock: what Allocate says can be met.
func (s *Service) Reserve(ctx context.Context, tx pgx.Tx, demands []Demand) error {
	return move(ctx, tx, demands, `available = available - m.quantity, reserved = reserved + m.quantity`)
}

// Release gives reserved stock back.
func (s *Service) Release(ctx context.Context, tx pgx.Tx, demands []Demand) error {
	return move(ctx, tx, demands, `available = available + m.quantity, reserved = reserved - m.quantity`)
}

// Sell turns reserved stock into sold stock.
func (s *Service) Sell(ctx context.Context, tx pgx.Tx, demands []Demand) error {
	return move(ctx, tx, demands, `reserved = reserved - m.quantity, sold = sold + m.quantity`)
}

// move changes each product once by the sum of the demands. The rows are
// locked in order of id first: two transactions never wait in a circle.
func move(ctx context.Context, tx pgx.Tx, demands []Demand, change string) error {
	if len(demands) == 0 {
		return nil
	}

	sums := make(Demand)

	for _, demand := range demands {
		for product, quantity := range demand {
			sums[product] += quantity
		}
	}

	products := productsOf([]Demand{sums})
	quantities := make([]int64, len(products))

	for i, product := range products {
		quantities[i] = sums[product]
	}

	_, err := tx.Exec(ctx, `
		WITH locked AS MATERIALIZED (
			SELECT product_id FROM stock WHERE product_id = ANY($1) ORDER BY product_id FOR NO KEY UPDATE
		)
		UPDATE stock SET `+change+`
		FROM unnest($1::text[], $2::bigint[]) AS m (product_id, quantity)
		JOIN locked USING (product_id)
		WHERE stock.product_id = m.product_id`, products, quantities)
	if err != nil {
		return fmt.Errorf("moving stock: %w", err)
	}

	return nil
}

func productsOf(demands []Demand) []string {
	var products []string

	for _, demand := range demands {
		for product := range demand {
			products = append(products, product)
		}
	}

	slices.Sort(products)

	return slices.Compact(products)
}

// Restock adds what came in. A product that does not exist is created.
func (s *Service) Restock(ctx context.Context, tx pgx.Tx, events []event.Event[Restocked]) ([]event.Outgoing, error) {
	supply := make(Demand)
	for _, e := range events {
		supply[e.Payload.ProductID] += *e.Payload.Quantity
	}

	products := productsOf([]Demand{supply})
	quantities := make([]int64, len(products))

	for i, product := range products {
		quantities[i] = supply[product]
	}

	// In order of id, as all row locks are taken.
	_, err := tx.Exec(ctx, `
		INSERT INTO stock (product_id, supplied, available)
		SELECT product_id, quantity, quantity FROM unnest($1::text[], $2::bigint[]) AS s (product_id, quantity)
		ORDER BY product_id
		ON CONFLICT (product_id) DO UPDATE
		SET supplied = stock.supplied + excluded.supplied, available = stock.available + excluded.available`, products, quantities)
	if err != nil {
		return nil, fmt.Errorf("restocking: %w", err)
	}

	return nil, nil
}

// Stock is the stock of a product: Supplied = Available + Reserved + Sold.
type Stock struct {
	ProductID string `json:"product_id"`
	Supplied  int64  `json:"supplied"`
	Available int64  `json:"available"`
	Reserved  int64  `json:"reserved"`
	Sold      int64  `json:"sold"`
}

// List returns the stock of the given products, or of all, by id.
func (s *Service) List(ctx context.Context, products ...string) ([]Stock, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT product_id, supplied, available, reserved, sold FROM stock
		WHERE cardinality($1::text[]) = 0 OR product_id = ANY($1) ORDER BY product_id`, append([]string{}, products...))
	if err != nil {
		return nil, fmt.Errorf("listing stock: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Stock])
	if err != nil {
		return nil, fmt.Errorf("listing stock: %w", err)
	}

	return list, nil
}

// Page returns the stock of the products whose ids come after one, by id, at
// most limit.
func (s *Service) Page(ctx context.Context, after string, limit int) ([]Stock, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT product_id, supplied, available, reserved, sold FROM stock
		WHERE product_id > $1 ORDER BY product_id LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("listing stock: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Stock])
	if err != nil {
		return nil, fmt.Errorf("listing stock: %w", err)
	}

	return list, nil
}

// Seed creates products with an initial stock; those that exist stay as they
// are.
func (s *Service) Seed(ctx context.Context, initial map[string]int64) error {
	products := productsOf([]Demand{initial})
	quantities := make([]int64, len(products))

	for i, product := range products {
		quantities[i] = initial[product]
	}

	_, err := s.pool.Exec(ctx, `
		INSERT INTO stock (product_id, supplied, available)
		SELECT product_id, quantity, quantity FROM unnest($1::text[], $2::bigint[]) AS s (product_id, quantity)
		ON CONFLICT DO NOTHING`, products, quantities)
	if err != nil {
		return fmt.Errorf("seeding stock: %w", err)
	}

	return nil
}
