package main

import "github.com/spf13/cobra"

func newPayments(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{
		Use: "payments", Short: "Compare payments with the gateway's record", Example: "  millrace payments show order_123",
	}, newPaymentsShow, newPaymentsLedger)
}
