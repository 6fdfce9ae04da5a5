package main

import "github.com/spf13/cobra"

func newUsers(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{Use: "users", Short: "Show and erase users", Example: "  millrace users show alice"},
		newUsersShow, newUsersList, newUsersMisses, newUsersErase)
}
