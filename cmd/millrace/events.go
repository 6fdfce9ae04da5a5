package main

import "github.com/spf13/cobra"

func newEvents(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{Use: "events", Short: "Read the event store", Example: "  millrace events show order-order_123"},
		newEventsShow, newEventsTail, newEventsExport)
}

// afterFlag adds --after.
func afterFlag(cmd *cobra.Command, to *int64) {
	cmd.Flags().Int64Var(to, "after", 0, "start after this position")
}
