package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedExport(opts *options) *cobra.Command {
	var selected selection

	return operation(opts, &cobra.Command{
		Use: "export [ID...]", Short: "Print failed messages with payloads, headers and actions, one JSON object per line",
		Example: "  millrace failed export --topic orders.created > failed.ndjson",
	}, func(c *call) error {
		f, err := c.Operator.Filter(c.ctx, selected.Selection, selected.state)
		if err == nil {
			f.IDs, err = entryIDs(c.args)
		}

		if err != nil {
			return err
		}

		return c.Failed.Export(c.ctx, f, c.Router.Check, line[failed.Exported](c))
	}, selected.flags, selected.stateFlag("all"))
}
