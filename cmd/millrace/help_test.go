package main

import (
	"io"
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
