package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/activity"
)

func newActivity(opts *options) *cobra.Command {
	var filter activity.Filter

	return listing(opts, &cobra.Command{
		Use: "activity", Short: "List operator actions, newest first",
		Example: `  millrace activity --who ann --since 24h
  millrace activity --action discarded`,
	}, func(c *call, limit int) ([]activity.Action, error) {
		return activity.List(c.ctx, c.Pool, filter, limit)
	}, func(c *call) (int, error) {
		return activity.Count(c.ctx, c.Pool, filter)
	}, table("WHEN WHO ACTION SUBJECT WHY DETAIL", func(a activity.Action) []any {
		return []any{a.At, a.Who, a.Action, a.Subject, a.Why, a.Detail}
	}),
		text((*string)(&filter.Action), "action", "", "list only this action, such as paused, edited, requeued, discarded or repaired"),
		text(&filter.Subject, "subject", "", "list only actions on this consumer, user or key"),
		text(&filter.Who, "who", "", "list only actions by this operator"),
		func(_ *options, flags *pflag.FlagSet) {
			flags.Var((*moment)(&filter.Since), "since", "list actions since this time: 2h or 2006-01-02T15:04:05Z")
			flags.Var((*moment)(&filter.Until), "until", "list actions before this time")
		})
}
