package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/shop/payment"
)

func newPayments(opts *options) *cobra.Command {
	cmd := &cobra.Command{Use: "payments", Short: "Look at payments, here and at the gateway", Args: exactly(0)}
	show := &cobra.Command{
		Use: "show ORDER", Short: "Show what is recorded about the payment of an order beside the gateway's own record", Args: exactly(1),
		RunE: with(opts, func(cmd *cobra.Command, args []string, service *app.Service) error {
			statement, err := payment.State(cmd.Context(), service.Pool, service.Gateway, args[0])
			if err != nil {
				return err
			}

			return opts.print(cmd.OutOrStdout(), statement, func(w io.Writer) { writeStatement(w, statement) })
		}),
	}

	var since time.Duration

	ledger := &cobra.Command{
		Use: "ledger", Short: "List the captures in the gateway's own record; with --json one object a line", Args: exactly(0),
		RunE: with(opts, func(cmd *cobra.Command, _ []string, service *app.Service) error {
			var from time.Time
			if since > 0 {
				from = time.Now().Add(-since)
			}

			if opts.json {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetEscapeHTML(false)

				return service.Gateway.Ledger(cmd.Context(), from, func(e payment.Entry) error { return encoder.Encode(e) })
			}

			return writeLedger(cmd.OutOrStdout(), func(line func(payment.Entry) error) error {
				return service.Gateway.Ledger(cmd.Context(), from, line)
			})
		}),
	}
	ledger.Flags().DurationVar(&since, "since", 24*time.Hour, "how far back, 0 for everything")
	cmd.AddCommand(show, ledger)

	return cmd
}

func writeStatement(w io.Writer, s payment.Statement) {
	fmt.Fprintf(w, "SIDE\tSTATUS\tAMOUNT\tREFUNDED\tTRANSACTION\tAT\n")

	for _, r := range s.Recorded {
		refunded := "0"
		if r.RefundID != "" {
			refunded = r.Amount.String()
		}

		status := r.Status
		if r.DeclineReason != "" {
			status += ": " + oneLine(r.DeclineReason, 60)
		}

		fmt.Fprintf(w, "here\t%s\t%s %s\t%s\t%s\t%s\n", status, r.Amount, r.Currency, refunded, r.TransactionID, stamp(r.RecordedAt))
	}

	for _, e := range s.Ledger {
		fmt.Fprintf(w, "gateway\tcaptured\t%s %s\t%s\t%s\t%s\n", e.Amount, e.Currency, e.Refunded, e.TransactionID, stamp(e.At))
	}

	if len(s.Differences) == 0 {
		fmt.Fprintln(w, "both agree")
	}

	for _, difference := range s.Differences {
		fmt.Fprintf(w, "they differ: %s\n", oneLine(difference, 300))
	}
}

// writeLedger aligns a few hundred lines at a time: a ledger has no end.
func writeLedger(out io.Writer, read func(line func(payment.Entry) error) error) error {
	const together = 500

	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ORDER\tTRANSACTION\tAMOUNT\tREFUNDED\tAT")

	lines := 0

	err := read(func(e payment.Entry) error {
		fmt.Fprintf(table, "%s\t%s\t%s %s\t%s\t%s\n", oneLine(e.OrderID, 60), e.TransactionID, e.Amount, e.Currency, e.Refunded, stamp(e.At))

		if lines++; lines%together == 0 {
			return table.Flush()
		}

		return nil
	})

	return errors.Join(err, table.Flush())
}
