package main

import (
	"os/user"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/poison"
)

func actorFlags(cmd *cobra.Command, by *poison.Actor) {
	who := "unknown"
	if u, err := user.Current(); err == nil && u.Username != "" {
		who = u.Username
	}

	cmd.Flags().StringVar(&by.Who, "by", who, "who acts")
	cmd.Flags().StringVar(&by.Why, "why", "", "the reason, for the record")
}
