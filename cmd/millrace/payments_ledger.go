package main

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/shop/payment"
)

func newPaymentsLedger(opts *options) *cobra.Command {
	var since time.Duration

	return operation(opts, &cobra.Command{
		Use: "ledger", Short: "List the captures in the gateway's record; with --json, one object per line",
		Example: "  millrace payments ledger --since 1h",
	}, func(c *call) error {
		var from time.Time
		if since > 0 {
			from = time.Now().Add(-since)
		}

		if c.json {
			return c.Gateway.Ledger(c.ctx, from, line[payment.Entry](c))
		}

		if err := c.writeLedger(from); err != nil || since <= 0 {
			return err
		}

		fmt.Fprintf(c.cmd.ErrOrStderr(), "captures since %s; --since 0 lists all\n", stamp(from))

		return nil
	}, func(_ *options, flags *pflag.FlagSet) {
		flags.DurationVar(&since, "since", 24*time.Hour, "how far back to list captures; 0 lists all")
	})
}

// writeLedger aligns a few hundred lines at a time, because ledgers are large.
func (c *call) writeLedger(from time.Time) error {
	const together = 500

	w := tabwriter.NewWriter(c.out(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ORDER\tTRANSACTION\tAMOUNT\tREFUNDED\tAT")

	lines := 0

	err := c.Gateway.Ledger(c.ctx, from, func(e payment.Entry) error {
		row(w, e.OrderID, e.TransactionID, fmt.Sprintf("%s %s", e.Amount, e.Currency), e.Refunded, e.At)

		if lines++; lines%together == 0 {
			return w.Flush()
		}

		return nil
	})

	return errors.Join(err, w.Flush())
}
