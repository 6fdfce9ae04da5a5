package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/event"
)

func newProjectionsRebuild(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "rebuild PROJECTION", Short: "Rebuild the tables of a projection while the service runs",
		Long: `Rebuild the tables of a projection from all events. The old tables stay in use and up
to date until they are replaced atomically. You can stop the command at any time;
nothing changes until the new tables replace the old ones.`,
		Example: "  millrace projections rebuild users",
	}, func(c *call) error {
		name, started := c.args[0], time.Now()
		progress, done := showProgress("rebuilding " + name)

		var positions int64

		err := c.Projector.Rebuild(c.ctx, name, func(at, total int64) {
			positions = at
			progress(at, total)
		})

		done()

		if err != nil {
			return err
		}

		took := time.Since(started)

		return c.print(map[string]any{"projection": name, "positions": positions, "seconds": took.Seconds()}, func(w io.Writer) {
			fmt.Fprintf(w, "rebuilt %s from %s in %s\n", name, event.Plural(positions, "position", "positions"), took.Round(time.Millisecond))
		})
	})
}
