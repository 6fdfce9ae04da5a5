package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedGroups(opts *options) *cobra.Command {
	return failedQuery(opts, &cobra.Command{
		Use: "groups", Short: "Group failed messages by cause, largest group first",
		Example: "  millrace failed groups --since 24h",
	}, func(c *call, f failed.Filter) ([]failed.Group, error) {
		return c.Failed.Groups(c.ctx, f, failed.GroupsAfter{}, c.limit)
	}, table("GROUP MESSAGES KEYS CONSUMER REASON FIRST LAST RELEASES CAUSE", func(g failed.Group) []any {
		releases := g.FirstRelease
		if g.LastRelease != g.FirstRelease {
			releases += " - " + g.LastRelease
		}

		return []any{g.ID, g.Entries, g.Keys, g.Consumer, g.Reason, g.FirstAt, g.LastAt, oneLine(releases, 40), oneLine(g.Cause, 120)}
	}))
}
