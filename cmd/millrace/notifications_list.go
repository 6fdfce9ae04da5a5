package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/shop/notification"
)

func newNotificationsList(opts *options) *cobra.Command {
	var user string

	return query(opts, &cobra.Command{
		Use: "list", Short: "List the newest notifications and the provider's answers", Example: "  millrace notifications list --user alice",
	}, func(c *call) ([]notification.Entry, error) { return c.Notifications.List(c.ctx, user, c.limit) },
		table("USER CHANNEL STATUS WHEN MESSAGE ANSWER", func(e notification.Entry) []any {
			return []any{e.UserID, e.Channel, e.Status, e.SentAt, e.MessageID, e.Answer}
		}), limited, text(&user, "user", "", "list only notifications to this user"))
}
