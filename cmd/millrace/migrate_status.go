package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

func newMigrateStatus(opts *options) *cobra.Command {
	return query(opts, &cobra.Command{
		Use: "status", Short: "List migrations and when they were applied", Example: "  millrace migrate status",
	}, func(c *call) ([]postgres.Migration, error) { return postgres.Migrations(c.ctx, c.Pool) }, writeMigrations)
}
