package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedDiscard(opts *options) *cobra.Command {
	return act(opts, &cobra.Command{
		Use: "discard [ID...]", Short: "Resolve stopped messages without applying them; requires --why",
		Example: `  millrace failed discard 17 --why "test order"`,
		PreRunE: func(*cobra.Command, []string) error {
			if strings.TrimSpace(opts.by.Why) == "" {
				return event.Errorf(event.Invalid, "--why: is missing, expected a reason for the discard")
			}

			return nil
		},
	}, "discarded", &failed.Pace{}, nil, func(c *call, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
		return c.Failed.Discard(c.ctx, f, c.by, pace)
	})
}
