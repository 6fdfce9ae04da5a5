package inventory_test

import (
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/shop/inventory"
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
