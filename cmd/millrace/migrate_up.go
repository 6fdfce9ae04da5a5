package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

func newMigrateUp(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "up", Short: "Apply all pending migrations", Example: "  millrace migrate up",
	}, func(c *call) ([]postgres.Migration, error) {
		if _, err := postgres.Migrate(c.ctx, c.Pool, newLogger(c.cfg)); err != nil {
			return nil, err
		}

		return postgres.Migrations(c.ctx, c.Pool)
	}, writeMigrations)
}

// writeMigrations prints migrations as a table.
var writeMigrations = table("VERSION NAME APPLIED", func(m postgres.Migration) []any { return []any{m.Version, m.Name, m.Applied} })
