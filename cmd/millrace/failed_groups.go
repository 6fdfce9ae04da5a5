package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/failed"
)

// note returns the note on a group, with who wrote it.
func note(g failed.Group) string {
	if g.Note == "" {
		return ""
	}

	return oneLine(g.NotedBy+": "+g.Note, 80)
}

func newFailedGroups(opts *options) *cobra.Command {
	return failedListing(opts, &cobra.Command{
		Use: "groups", Short: "Group failed messages by cause, largest group first",
		Example: "  millrace failed groups --since 24h",
	}, func(c *call, f failed.Filter, limit int) ([]failed.Group, error) {
		return c.Failed.Groups(c.ctx, f, failed.GroupsAfter{}, limit)
	}, func(c *call, f failed.Filter) (int, error) {
		return c.Failed.CountGroups(c.ctx, f)
	}, table("GROUP MESSAGES KEYS CONSUMER REASON FIRST LAST RELEASES CAUSE NOTE", func(g failed.Group) []any {
		releases := g.FirstRelease
		if g.LastRelease != g.FirstRelease {
			releases += " - " + g.LastRelease
		}

		return []any{g.ID, g.Entries, g.Keys, g.Consumer, g.Reason, g.FirstAt, g.LastAt, oneLine(releases, 40), oneLine(g.Cause, 120), note(g)}
	}))
}
