package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	t.Parallel()

	var visit func(cmd *cobra.Command)

	visit = func(cmd *cobra.Command) {
		path := cmd.CommandPath()

		if !strings.Contains(cmd.Example, path) {
			t.Errorf("%s: the example does not run the command: %q", path, cmd.Example)
		}

		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || strings.ToUpper(cmd.Short[:1]) != cmd.Short[:1] {
			t.Errorf("%s: the short help is %q", path, cmd.Short)
		}

		for _, child := range cmd.Commands() {
			visit(child)
		}
	}

	visit(newRoot(io.Discard, io.Discard))
}

func TestEveryCommandHasAManualPage(t *testing.T) {
	t.Parallel()

	dir := t.TempDir()

	root := newRoot(io.Discard, io.Discard)
	root.SetArgs([]string{"man", dir})

	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}

	var visit func(cmd *cobra.Command)

	visit = func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"

		page, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !cmd.Hidden && cmd.Name() != "help" {
			t.Error(err)
		}

		if err == nil && !strings.Contains(string(page), cmd.Short) {
			t.Errorf("%s does not say what the command does", name)
		}

		for _, child := range cmd.Commands() {
			visit(child)
		}
	}

	visit(root)
}
