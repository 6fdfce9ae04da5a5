package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/order"
)

func newOrdersList(opts *options) *cobra.Command {
	var status string

	return listing(opts, &cobra.Command{
		Use: "list", Short: "List the most recently changed orders", Example: "  millrace orders list --status payment_failed --limit 100",
	}, func(c *call, limit int) ([]order.Summary, error) {
		return c.Orders.List(c.ctx, order.Status(status), limit)
	},
		func(c *call) (int, error) { return c.Orders.Count(c.ctx, order.Status(status)) },
		table("ORDER STATUS TOTAL CHANGED", func(o order.Summary) []any {
			return []any{o.ID, o.Status, o.Total + " " + o.Currency, o.UpdatedAt}
		}), text(&status, "status", "", "list only orders with this status, such as completed"))
}
