package main

import "github.com/spf13/cobra"

// newHelp returns a help command that, unlike cobra's, fails for an unknown command.
func newHelp(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "help [COMMAND...]", Short: "Show help for a command", Example: "  millrace help failed requeue",
	}, func(c *call) error {
		found, rest, err := c.cmd.Root().Find(c.args)
		if err != nil || len(rest) > 0 {
			return unknownCommand(found, rest[0])
		}

		found.InitDefaultHelpFlag() // so that the help lists --help

		return found.Help()
	})
}
