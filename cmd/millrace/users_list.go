package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/user"
)

func newUsersList(opts *options) *cobra.Command {
	return listing(opts, &cobra.Command{
		Use: "list", Short: "List the most recently changed users", Example: "  millrace users list --limit 100",
	}, func(c *call, limit int) ([]user.Summary, error) { return c.Users.List(c.ctx, limit) },
		func(c *call) (int, error) { return c.Users.Count(c.ctx) },
		table("USER NAME EMAIL CHANGED", func(u user.Summary) []any {
			return []any{u.ID, orErased(u.Name), orErased(u.Email), u.UpdatedAt}
		}))
}

func orErased(text *string) string {
	if text == nil {
		return "(erased)"
	}

	return oneLine(*text, 60)
}
