package main

import "github.com/spf13/cobra"

func newProjections(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{
		Use: "projections", Short: "Show and rebuild the tables that follow the event store", Example: "  millrace projections status",
	}, newProjectionsStatus, newProjectionsRebuild)
}
