package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/access"
)

func newTokensList(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "list", Short: "List operator API tokens, without their secrets", Example: "  millrace tokens list",
	}, func(c *call) ([]access.Token, error) { return access.ListTokens(c.ctx, c.Pool) },
		table("NAME ROLE STATE EXPIRES USED CREATED BY", func(t access.Token) []any {
			return []any{t.Name, t.Role, t.State(), t.ExpiresAt, t.UsedAt, t.CreatedAt, t.CreatedBy}
		}))
}
