package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/eventstore"
)

func newEventsExport(opts *options) *cobra.Command {
	var after int64

	return operation(opts, &cobra.Command{
		Use: "export", Short: "Print all events, one JSON object per line", Example: "  millrace events export > events.ndjson",
	}, func(c *call) error { return c.Operator.Events(c.ctx, after, false, line[eventstore.Event](c)) }, position(&after))
}

// position adds --after.
func position(after *int64) flag {
	return func(_ *options, flags *pflag.FlagSet) { flags.Int64Var(after, "after", 0, "start after this position") }
}
