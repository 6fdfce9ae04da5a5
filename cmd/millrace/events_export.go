package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/eventstore"
)

func newEventsExport(opts *options) *cobra.Command {
	var after int64

	cmd := operation(opts, &cobra.Command{
		Use: "export", Short: "Print all events, one JSON object per line", Example: "  millrace events export > events.ndjson",
	}, func(c *call) error { return c.Operator.Events(c.ctx, after, false, line[eventstore.Event](c)) })
	afterFlag(cmd, &after)

	return cmd
}
