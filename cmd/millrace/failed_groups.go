package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedGroups(opts *options) *cobra.Command {
	var (
		selected selection
		limit    int
	)

	cmd := query(opts, &cobra.Command{
		Use: "groups", Short: "List the messages that failed for the same cause together, largest group first",
		Example: "  millrace failed groups --since 24h",
	}, func(c *call) ([]failed.Group, error) {
		f, err := selected.filter(c)
		if err != nil {
			return nil, err
		}

		return c.Failed.Groups(c.ctx, f, failed.GroupsAfter{}, limit)
	}, table("GROUP MESSAGES KEYS CONSUMER REASON FIRST LAST RELEASES CAUSE", func(g failed.Group) []any {
		releases := g.FirstRelease
		if g.LastRelease != g.FirstRelease {
			releases += " - " + g.LastRelease
		}

		return []any{g.ID, g.Entries, g.Keys, g.Consumer, g.Reason, g.FirstAt, g.LastAt, oneLine(releases, 40), oneLine(g.Cause, 120)}
	}))
	selected.listFlags(cmd, "stopped")
	limitFlag(cmd, &limit)

	return cmd
}
