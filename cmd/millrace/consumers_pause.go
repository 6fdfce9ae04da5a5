package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/operate"
)

func newConsumersPause(opts *options) *cobra.Command {
	var pausing operate.Pausing

	return operation(opts, &cobra.Command{
		Use: "pause CONSUMER", Short: "Pause a consumer on all replicas; its messages wait",
		Long: `Pause a consumer on all replicas and print what will wait during the pause. With --for,
the pause ends on its own; pausing again changes when it ends. --dry-run only prints
what the pause would affect.`,
		Example: `  millrace consumers pause fulfilment.charge --why "the provider is down" --for 1h
  millrace consumers pause fulfilment.charge --dry-run`,
	}, func(c *call) error {
		outcome, err := c.Operator.Pause(c.ctx, c.args[0], pausing, c.by)
		if err != nil {
			return err
		}

		return c.print(outcome, func(w io.Writer) { writePause(w, c.args[0], pausing, outcome) })
	}, recorded, func(_ *options, flags *pflag.FlagSet) {
		flags.DurationVar(&pausing.For, "for", 0, "end the pause after this long, such as 30m; 0 pauses until the consumer is resumed")
		flags.BoolVar(&pausing.DryRun, "dry-run", false, "only print what the pause would affect")
	})
}

func writePause(w io.Writer, name string, asked operate.Pausing, o operate.PauseOutcome) {
	switch {
	case o.DryRun && asked.For > 0:
		fmt.Fprintf(w, "would pause %s for %s\n", name, asked.For)
	case o.DryRun:
		fmt.Fprintf(w, "would pause %s until it is resumed\n", name)
	case !o.Changed:
		fmt.Fprintf(w, "%s was already paused\n", name)
	case o.Pause != nil && o.Pause.Until != nil:
		fmt.Fprintf(w, "paused %s until %s; every replica follows within a second\n", name, stamp(*o.Pause.Until))
	default:
		fmt.Fprintf(w, "paused %s; every replica follows within a second\n", name)
	}

	if o.Unknown != "" {
		fmt.Fprintf(w, "the end of the pause is unknown: %s\n", oneLine(o.Unknown, 300))
	}

	for _, effect := range o.Effects {
		fmt.Fprintf(w, "- %s\n", effect)
	}
}
