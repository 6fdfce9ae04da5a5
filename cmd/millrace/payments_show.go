package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/payment"
)

func newPaymentsShow(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "show ORDER", Short: "Show the payment of an order alongside the gateway's record", Example: "  millrace payments show order_123",
	}, func(c *call) (payment.Statement, error) { return c.ShowPayment(c.ctx, c.args[0]) }, writeStatement)
}

func writeStatement(w io.Writer, s payment.Statement) {
	fmt.Fprintln(w, "SIDE\tSTATUS\tAMOUNT\tREFUNDED\tTRANSACTION\tAT")

	for _, r := range s.Recorded {
		refunded := "0"
		if r.RefundID != "" {
			refunded = r.Amount.String()
		}

		status := r.Status
		if r.DeclineReason != "" {
			status += ": " + oneLine(r.DeclineReason, 60)
		}

		if r.RefundFailure != "" {
			status += ", refund failed: " + oneLine(r.RefundFailure, 60)
		}

		row(w, "here", status, fmt.Sprintf("%s %s", r.Amount, r.Currency), refunded, r.TransactionID, r.RecordedAt)
	}

	for _, e := range s.Ledger {
		row(w, "gateway", "captured", fmt.Sprintf("%s %s", e.Amount, e.Currency), e.Refunded, e.TransactionID, e.At)
	}

	if len(s.Differences) == 0 {
		fmt.Fprintln(w, "both agree")
	}

	for _, difference := range s.Differences {
		fmt.Fprintf(w, "mismatch: %s\n", oneLine(difference, 300))
	}
}
