// Package inventory stores each product's stock: available, reserved and sold.
// Allocate decides without I/O; changes to the tables are set-based.
package inventory

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Demand holds an order's quantities by product.
type Demand map[string]int64

// Shortage is a product whose requested quantity exceeds the available stock.
type Shortage struct {
	ProductID            string
	Requested, Available int64
}

// Allocate decides, in order, which demands the available stock can meet in full.
// For a demand that is met it subtracts the quantities from available and returns
// nil. A product missing from available counts as 0.
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

// shortage returns the first shortage in order of product id, or nil.
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

// Available returns the available stock of the demanded products. It does not lock it:
// Reserve fails if another transaction has taken too much of it in the meantime. Products
// that do not exist are missing from the result.
func (s *Service) Available(ctx context.Context, tx pgx.Tx, demands []Demand) (available map[string]int64, err error) {
	products, _ := sum(demands)

	list, err := postgres.Collect(ctx, tx, pgx.RowToStructByPos[Stock], selectStock+`
		WHERE product_id = ANY($1)`, products)
	if err != nil {
		return nil, fmt.Errorf("reading stock: %w", err)
	}

	available = make(map[string]int64, len(list))
	for _, stock := range list {
		available[stock.ProductID] = stock.Available
	}

	return available, nil
}

// Reserve queues the write that turns available stock into reserved stock. It fails with a
// postgres.ContentionError if that much is no longer available.
func (s *Service) Reserve(writes *pgx.Batch, demands []Demand) {
	move(writes, demands, `available = available - m.quantity, reserved = reserved + m.quantity`)
}

// Release queues the write that turns reserved stock into available stock.
func (s *Service) Release(writes *pgx.Batch, demands []Demand) {
	move(writes, demands, `available = available + m.quantity, reserved = reserved - m.quantity`)
}

// Sell queues the write that turns reserved stock into sold stock.
func (s *Service) Sell(writes *pgx.Batch, demands []Demand) {
	move(writes, demands, `reserved = reserved - m.quantity, sold = sold + m.quantity`)
}

// move queues writes that change each product once, by the sum of the demands. The first
// locks the rows in id order, so two transactions cannot deadlock. The second sees what
// those that it waited for have committed: in one statement, whose snapshot is older than
// the wait, Postgres would look up and check each changed row again.
func move(writes *pgx.Batch, demands []Demand, change string) {
	if len(demands) == 0 {
		return
	}

	products, quantities := sum(demands)

	postgres.Queue(writes, "locking stock", `SELECT FROM stock WHERE product_id = ANY($1) ORDER BY product_id FOR NO KEY UPDATE`, products)
	writes.Queue(`
		UPDATE stock SET `+change+`
		FROM unnest($1::text[], $2::bigint[]) AS m (product_id, quantity)
		WHERE stock.product_id = m.product_id AND stock.product_id = ANY($1)`, products, quantities).Fn = func(results pgx.BatchResults) error {
		_, err := results.Exec()

		switch {
		case err == nil:
			return nil
		case postgres.Violates(err, "stock_available_not_negative"):
			return &postgres.ContentionError{Err: fmt.Errorf("moving stock: %w", err)}
		default:
			return fmt.Errorf("moving stock: %w", err)
		}
	}
}

// sum totals the demands by product, in id order.
func sum(demands []Demand) (products []string, quantities []int64) {
	total := make(Demand)

	for _, demand := range demands {
		for product, quantity := range demand {
			total[product] += quantity
		}
	}

	products = slices.Sorted(maps.Keys(total))

	return products, postgres.Column(products, func(product string) int64 { return total[product] })
}

// Restock adds deliveries to the stock. It creates products that do not exist.
func (s *Service) Restock(ctx context.Context, tx pgx.Tx, events []event.Event[Restocked]) ([]event.Outgoing, error) {
	products, quantities := sum(postgres.Column(events, func(e event.Event[Restocked]) Demand {
		return Demand{e.Payload.ProductID: *e.Payload.Quantity}
	}))

	// In id order, like all row locks.
	_, err := tx.Exec(ctx, insertStock+` ON CONFLICT (product_id) DO UPDATE
		SET supplied = stock.supplied + excluded.supplied, available = stock.available + excluded.available`, products, quantities)
	if err != nil {
		return nil, fmt.Errorf("restocking: %w", err)
	}

	return nil, nil
}

// Seed creates products with an initial stock. Existing products are unchanged.
func (s *Service) Seed(ctx context.Context, initial map[string]int64) error {
	products, quantities := sum([]Demand{initial})

	if _, err := s.pool.Exec(ctx, insertStock+` ON CONFLICT DO NOTHING`, products, quantities); err != nil {
		return fmt.Errorf("seeding stock: %w", err)
	}

	return nil
}

const insertStock = `
	INSERT INTO stock (product_id, supplied, available)
	SELECT product_id, quantity, quantity FROM unnest($1::text[], $2::bigint[]) AS s (product_id, quantity)
	ORDER BY product_id`

// Stock is the stock of a product: Supplied = Available + Reserved + Sold.
type Stock struct {
	ProductID string `json:"product_id"`
	Supplied  int64  `json:"supplied"`
	Available int64  `json:"available"`
	Reserved  int64  `json:"reserved"`
	Sold      int64  `json:"sold"`
}

const selectStock = `SELECT product_id, supplied, available, reserved, sold FROM stock`

// List returns the stock of the given products, which must exist, or of all products if
// none are given, in id order.
func (s *Service) List(ctx context.Context, products ...string) ([]Stock, error) {
	list, err := s.list(ctx, ` WHERE cardinality($1::text[]) = 0 OR product_id = ANY($1) ORDER BY product_id`, append([]string{}, products...))

	for _, product := range products {
		if err == nil && !slices.ContainsFunc(list, func(s Stock) bool { return s.ProductID == product }) {
			err = event.Missing("product", product)
		}
	}

	return list, err
}

// Page returns up to limit products after the given id, in id order.
func (s *Service) Page(ctx context.Context, after string, limit int) ([]Stock, error) {
	return s.list(ctx, ` WHERE product_id > $1 ORDER BY product_id LIMIT $2`, after, limit)
}

func (s *Service) list(ctx context.Context, where string, args ...any) ([]Stock, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Stock], selectStock+where, args...)
	if err != nil {
		return nil, fmt.Errorf("listing stock: %w", err)
	}

	return list, nil
}
