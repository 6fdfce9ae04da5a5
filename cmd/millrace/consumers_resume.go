package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newConsumersResume(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "resume CONSUMER", Short: "Resume a paused consumer on all replicas", Example: "  millrace consumers resume fulfilment.charge",
	}, func(c *call) error {
		changed, err := c.Router.Resume(c.ctx, c.args[0], c.by)
		if err != nil {
			return err
		}

		return c.print(map[string]bool{"changed": changed}, func(w io.Writer) {
			if changed {
				fmt.Fprintf(w, "resumed %s; every replica follows within a second\n", c.args[0])
			} else {
				fmt.Fprintf(w, "%s is not paused\n", c.args[0])
			}
		})
	}, recorded)
}
