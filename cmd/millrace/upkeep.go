package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

func newUpkeep(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "upkeep", Short: "Create upcoming partitions and delete expired data",
		Long: `Create upcoming partitions and delete expired data now; the service does this every
upkeep.every. Only one process does it at a time. The command also reports any
transaction that has been open for a long time.`,
		Example: "  millrace upkeep",
	}, func(c *call) error {
		done, err := c.Operator.Upkeep(c.ctx)
		if done.Tasks == nil && err != nil {
			return err
		}

		return errors.Join(err, c.print(done, func(w io.Writer) { writeUpkeep(w, done) }))
	})
}

func writeUpkeep(w io.Writer, done operate.Upkeep) {
	table("TASK REMOVED SECONDS", func(d upkeep.Done) []any {
		return []any{d.Task, d.Removed, fmt.Sprintf("%.2f", d.Seconds)}
	})(w, done.Tasks)

	if done.Old != nil {
		fmt.Fprintf(w, "\nA transaction blocks vacuum: %s\n", oneLine(done.Old.Describe(), 300))
	}
}
