package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/inventory"
)

func newStock(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "stock [PRODUCT...]", Short: "Show product stock", Example: "  millrace stock product_1 product_2",
	}, func(c *call) ([]inventory.Stock, error) { return c.Inventory.List(c.ctx, c.args...) },
		table("PRODUCT AVAILABLE RESERVED SOLD", func(s inventory.Stock) []any {
			return []any{s.ProductID, s.Available, s.Reserved, s.Sold}
		}))
}
