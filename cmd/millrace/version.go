package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newVersion(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{Use: "version", Short: "Print the version", Example: "  millrace version"}, func(c *call) error {
		return c.print(map[string]string{"version": version}, func(w io.Writer) { fmt.Fprintln(w, version) })
	})
}
