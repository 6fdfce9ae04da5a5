package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
)

// switchConsumer completes a command that pauses or resumes a consumer.
func switchConsumer(opts *options, cmd *cobra.Command, done string,
	change func(*consumer.Router, context.Context, string, activity.Actor) (bool, error),
) *cobra.Command {
	return operation(opts, cmd, func(c *call) error {
		changed, err := change(c.Router, c.ctx, c.args[0], c.by)
		if err != nil {
			return err
		}

		return c.print(map[string]bool{"changed": changed}, func(w io.Writer) {
			if changed {
				fmt.Fprintf(w, "%s %s; every replica follows within a second\n", done, c.args[0])
			} else {
				fmt.Fprintf(w, "%s was already %s\n", c.args[0], done)
			}
		})
	}, recorded)
}
