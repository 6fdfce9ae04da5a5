package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/user"
)

func newUsersMisses(opts *options) *cobra.Command {
	return listing(opts, &cobra.Command{
		Use: "misses", Short: "List updates for users that did not exist (outcome user_not_found)", Example: "  millrace users misses",
	}, func(c *call, limit int) ([]user.Miss, error) { return c.Users.Misses(c.ctx, limit) },
		func(c *call) (int, error) { return c.Users.CountMisses(c.ctx) },
		table("USER OUTCOME MESSAGE WHEN", func(m user.Miss) []any {
			return []any{m.UserID, "user_not_found", m.MessageID, m.MissedAt}
		}))
}
