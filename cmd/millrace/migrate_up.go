package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

func newMigrateUp(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "up", Short: "Apply all pending migrations", Example: "  millrace migrate up",
	}, func(c *call) ([]postgres.Migration, error) {
		cfg, err := opts.load()
		if err != nil {
			return nil, err
		}

		if _, err := postgres.Migrate(c.ctx, c.Pool, newLogger(cfg)); err != nil {
			return nil, err
		}

		return postgres.Migrations(c.ctx, c.Pool)
	}, writeMigrations)
}
