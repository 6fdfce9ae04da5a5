package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedDiscard(opts *options) *cobra.Command {
	var (
		selected selection
		pace     failed.Pace
		by       activity.Actor
	)

	cmd := operation(opts, &cobra.Command{
		Use: "discard [ID...]", Short: "Resolve stopped messages without applying them; requires --why",
		Example: `  millrace failed discard 17 --why "test order of the shop"`,
	}, func(c *call) error {
		if strings.TrimSpace(by.Why) == "" {
			return usageError{errors.New("--why: is missing, expected the reason of the discard")}
		}

		return act(c, &selected, pace, "discard", "discarded", func(ctx context.Context, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
			return c.Failed.Discard(ctx, f, by, pace)
		})
	})
	selected.flags(cmd)
	actorFlags(cmd, &by)
	cmd.Flags().BoolVar(&selected.all, "all", false, "select all stopped messages")
	cmd.Flags().BoolVar(&pace.DryRun, "dry-run", false, "only report what would be done")

	return cmd
}
