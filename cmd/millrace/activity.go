package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/activity"
)

func newActivity(opts *options) *cobra.Command {
	var (
		filter       activity.Filter
		action       string
		since, until moment
		limit        int
	)

	cmd := query(opts, &cobra.Command{
		Use: "activity", Short: "List what operators did, newest first",
		Example: `  millrace activity --who ann --since 24h
  millrace activity --action discarded`,
	}, func(c *call) ([]activity.Action, error) {
		filter.Action, filter.Since, filter.Until = activity.Kind(action), time.Time(since), time.Time(until)

		return activity.List(c.ctx, c.Pool, filter, limit)
	}, table("WHEN WHO ACTION SUBJECT WHY DETAIL", func(a activity.Action) []any {
		return []any{a.At, a.Who, a.Action, a.Subject, a.Why, a.Detail}
	}))
	flags := cmd.Flags()
	flags.StringVar(&action, "action", "", "list only this action, such as paused, edited, requeued, discarded or repaired")
	flags.StringVar(&filter.Subject, "subject", "", "list only actions on this consumer, user or key")
	flags.StringVar(&filter.Who, "who", "", "list only actions of this operator")
	flags.Var(&since, "since", "list actions since then: 2h or 2006-01-02T15:04:05Z")
	flags.Var(&until, "until", "list actions before then")
	limitFlag(cmd, &limit)

	return cmd
}
