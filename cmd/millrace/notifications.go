package main

import "github.com/spf13/cobra"

func newNotifications(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{
		Use: "notifications", Short: "Show what was sent to users", Example: "  millrace notifications list --user alice",
	}, newNotificationsList)
}
