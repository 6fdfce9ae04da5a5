// Package migrations holds the schema as numbered SQL files, in goose's format.
package migrations

import (
	"embed"
	"io/fs"
	"regexp"
)

// FS holds the migration files.
//
//go:embed *.sql
var FS embed.FS

var createTable = regexp.MustCompile(`(?m)^CREATE TABLE (\w+)`)

// Tables returns the names of the tables that the migrations create, in order.
func Tables() []string {
	var tables []string

	files, _ := fs.Glob(FS, "*.sql") // the pattern is valid
	for _, file := range files {
		content, _ := FS.ReadFile(file) // Glob has found it

		for _, match := range createTable.FindAllSubmatch(content, -1) {
			tables = append(tables, string(match[1]))
		}
	}

	return tables
}
