package main

import (
	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

func newMigrate(opts *options) *cobra.Command {
	return group(opts, &cobra.Command{Use: "migrate", Short: "Show and apply the migrations of the database", Example: "  millrace migrate up"},
		newMigrateUp, newMigrateStatus)
}

// writeMigrations prints migrations as a table.
var writeMigrations = table("VERSION NAME APPLIED", func(m postgres.Migration) []any { return []any{m.Version, m.Name, m.Applied} })
