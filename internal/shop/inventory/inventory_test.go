package inventory_test

import (
	"context"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestAllocateMeetsADemandAsAWholeOrNotAtAll(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(t *rapid.T) {
		product := rapid.SampledFrom([]string{"a", "b", "c", "unknown"})
		quantities := rapid.MapOfN(product, rapid.Int64Range(1, 9), 1, 4)
		stock := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.Int64Range(0, 20)).Draw(t, "stock")

		var demands []inventory.Demand
		for _, demand := range rapid.SliceOf(quantities).Draw(t, "demands") {
			demands = append(demands, demand)
		}

		left := maps.Clone(stock)
		shortages := inventory.Allocate(left, demands)
		expected := maps.Clone(stock)

		for i, demand := range demands {
			if shortages[i] == nil {
				for product, quantity := range demand {
					expected[product] -= quantity
				}

				continue
			}

			if s := shortages[i]; s.Requested != demand[s.ProductID] || s.Available != expected[s.ProductID] || s.Requested <= s.Available {
				t.Fatalf("demand %d: shortage %+v does not hold", i, s)
			}
		}

		for product, quantity := range left {
			if quantity < 0 || quantity != expected[product] {
				t.Fatalf("%s: %d left, expected %d", product, quantity, expected[product])
			}
		}
	})
}

// TestProductsAreLockedInIDOrderAndMovedAsTheWaitLeftThem: a transaction that waits for a
// product has locked those before it and none after it. What it waited for counts.
func TestProductsAreLockedInIDOrderAndMovedAsTheWaitLeftThem(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	s := inventory.NewService(pool)

	for _, product := range []string{"c", "b", "a"} { // the table has them in another order
		if err := s.Seed(t.Context(), map[string]int64{product: 10}); err != nil {
			t.Fatal(err)
		}
	}

	reserve := func(tx pgx.Tx, demand inventory.Demand) error {
		writes := &pgx.Batch{}
		s.Reserve(writes, []inventory.Demand{demand})

		return tx.SendBatch(context.Background(), writes).Close()
	}

	first, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Rollback(context.WithoutCancel(t.Context())) }()

	if err := reserve(first, inventory.Demand{"b": 4}); err != nil {
		t.Fatal(err)
	}

	second := make(chan error, 1)
	go func() {
		second <- postgres.InTx(context.Background(), pool, func(tx pgx.Tx) error {
			// Without nested loops, the change itself would take the rows in the order of the table.
			if _, err := tx.Exec(context.Background(), `SET LOCAL enable_nestloop = off; SET LOCAL enable_mergejoin = off`); err != nil {
				return err
			}

			return reserve(tx, inventory.Demand{"a": 1, "b": 6, "c": 1})
		})
	}()

	pgtest.Eventually(t, "the second transaction waits for the first", pgtest.LockWaits(t, pool))

	free := pgtest.Values[string](t, pool, `SELECT product_id FROM stock ORDER BY product_id FOR NO KEY UPDATE SKIP LOCKED`)
	if diff := cmp.Diff([]string{"c"}, free); diff != "" {
		t.Errorf("products that nobody has locked: %s", diff)
	}

	if err := first.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	if err := <-second; err != nil {
		t.Fatal(err)
	}

	list, err := s.List(t.Context())
	expected := []inventory.Stock{
		{ProductID: "a", Supplied: 10, Available: 9, Reserved: 1},
		{ProductID: "b", Supplied: 10, Reserved: 10},
		{ProductID: "c", Supplied: 10, Available: 9, Reserved: 1},
	}

	if diff := cmp.Diff(expected, list); diff != "" || err != nil {
		t.Errorf("%s, %v", diff, err)
	}
}
