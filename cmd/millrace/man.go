package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newMan returns the command with which `make release` writes the manual.
func newMan(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "man DIR", Short: "Write a manual page for each command", Hidden: true,
		Example: "  millrace man man/man1",
	}, func(c *call) error {
		root := c.cmd.Root()
		root.DisableAutoGenTag = true // it has today's date

		return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "millrace " + version}, c.args[0])
	})
}
