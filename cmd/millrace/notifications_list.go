package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/notification"
)

func newNotificationsList(opts *options) *cobra.Command {
	var user string

	return listing(opts, &cobra.Command{
		Use: "list", Short: "List the most recent notifications and the provider's responses", Example: "  millrace notifications list --user alice",
	}, func(c *call, limit int) ([]notification.Entry, error) {
		return c.Notifications.List(c.ctx, user, limit)
	},
		func(c *call) (int, error) { return c.Notifications.Count(c.ctx, user) },
		table("USER CHANNEL STATUS WHEN MESSAGE ANSWER", func(e notification.Entry) []any {
			return []any{e.UserID, e.Channel, e.Status, e.SentAt, e.MessageID, e.Answer}
		}), text(&user, "user", "", "list only notifications to this user"))
}
