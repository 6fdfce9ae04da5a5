package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/fulfilment"
)

func newOrdersDiagram(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "diagram", Short: "Print the states of an order as a Mermaid diagram", Example: "  millrace orders diagram > orders.mmd",
	}, func(c *call) error {
		_, err := io.WriteString(c.out(), fulfilment.Diagram())

		return err
	})
}
