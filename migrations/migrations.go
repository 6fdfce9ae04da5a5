// Package migrations holds the schema as numbered SQL files, in goose's format.
package migrations

import "embed"

// FS holds the migration files.
//
//go:embed *.sql
var FS embed.FS
