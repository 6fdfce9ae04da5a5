package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/millracehq/millrace/internal/engine/event"
)

// newMan returns the command with which `make release` writes the manual.
func newMan(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "man DIR", Short: "Write a manual page for each command", Hidden: true,
		Example: "  millrace man man/man1",
	}, func(c *call) error {
		if info, err := os.Stat(c.args[0]); err != nil || !info.IsDir() {
			return event.Errorf(event.Invalid, "%q is not a directory, expected one that exists", c.args[0])
		}

		root := c.cmd.Root()
		root.DisableAutoGenTag = true // it has today's date

		return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "millrace " + version}, c.args[0])
	})
}
