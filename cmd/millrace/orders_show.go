package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/order"
)

func newOrdersShow(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "show ORDER", Short: "Show an order and its history", Example: "  millrace orders show order_123",
	}, func(c *call) (order.Details, error) { return c.ShowOrder(c.ctx, c.args[0]) }, writeOrder)
}

func writeOrder(w io.Writer, o order.Details) {
	row(w, "order", o.ID)
	row(w, "status", o.Status)
	row(w, "total", fmt.Sprintf("%s %s", o.Total, o.Currency))

	for _, line := range o.Lines {
		row(w, "line", fmt.Sprintf("%d x %s", line.Quantity, line.ProductID))
	}

	fmt.Fprintln(w, "history\t")

	for _, e := range o.History {
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\n", e.Version, e.Type, stamp(e.RecordedAt), oneLine(string(e.Data), 2000))
	}
}
