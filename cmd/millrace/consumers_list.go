package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/operate"
)

func newConsumersList(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "list", Short: "List the consumers and their state",
		Long: `List the consumers and their state, as reported by the service at health.addr. Pauses
apply to all replicas; connections are shown only for the replica that responds. If no
service responds, the states are unknown.`,
		Example: "  millrace consumers list",
	}, func(c *call) ([]operate.Consumer, error) { return c.Operator.ConsumersAt(c.ctx, c.cfg.Health.Addr) }, writeConsumers)
}

// writeConsumers prints consumers as a table.
func writeConsumers(w io.Writer, list []operate.Consumer) {
	table("CONSUMER TOPIC STATE", func(c operate.Consumer) []any {
		return []any{c.Consumer, c.Topic, c.Describe(stamp)}
	})(w, list)

	if len(list) > 0 && list[0].State == operate.Unknown {
		fmt.Fprintln(w, "\nNo service is responding; see `millrace status`.")
	}
}
