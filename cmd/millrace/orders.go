package main

import "github.com/spf13/cobra"

func newOrders(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{Use: "orders", Short: "Show and cancel orders", Example: "  millrace orders list --status completed"},
		newOrdersShow, newOrdersList, newOrdersCancel, newOrdersDiagram)
}
