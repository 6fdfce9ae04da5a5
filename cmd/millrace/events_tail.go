package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/eventstore"
)

func newEventsTail(opts *options) *cobra.Command {
	var after int64

	return operation(opts, &cobra.Command{
		Use: "tail", Short: "Print events as they are recorded, one JSON object per line, until Ctrl-C",
		Example: "  millrace events tail",
	}, func(c *call) (err error) {
		if !c.cmd.Flags().Changed("after") {
			if after, err = eventstore.Horizon(c.ctx, c.Pool); err != nil {
				return err
			}
		}

		return c.Operator.Events(c.ctx, after, true, line[eventstore.Event](c))
	}, position(&after))
}
