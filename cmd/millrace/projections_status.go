package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/eventstore"
)

func newProjectionsStatus(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "status", Aliases: []string{"list"}, Short: "Show how far each projection has read", Example: "  millrace projections status",
	}, func(c *call) ([]eventstore.Status, error) { return c.Projector.Status(c.ctx) },
		table("PROJECTION POSITION BEHIND MOVED REBUILT", func(p eventstore.Status) []any {
			return []any{p.Name, p.Position, p.Behind, p.UpdatedAt, p.RebuiltAt}
		}))
}
