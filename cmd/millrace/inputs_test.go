package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

// commandLines returns one command line for each argument and each text flag of each
// command, with value in its place. Other required flags are left out.
func commandLines(cmd *cobra.Command, path []string, value string) [][]string {
	var lines [][]string

	for _, child := range cmd.Commands() {
		lines = append(lines, commandLines(child, append(slices.Clone(path), child.Name()), value)...)
	}

	if cmd.HasSubCommands() || slices.Contains([]string{"serve", "dev"}, cmd.Name()) {
		return lines
	}

	args := make([]string, max(0, len(strings.Fields(cmd.Use))-1))
	for i := range args {
		args[i] = "1"
	}

	for i := range args {
		odd := slices.Clone(args)
		odd[i] = value
		lines = append(lines, append(slices.Clone(path), odd...))
	}

	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Value.Type() == "string" || strings.HasPrefix(f.Value.Type(), "string") {
			lines = append(lines, append(append(slices.Clone(path), args...), "--"+f.Name+"="+value))
		}
	})

	return lines
}

// Text that Postgres cannot store never reaches it, whichever argument or flag contains
// it.
func TestCommandsRefuseWhatCannotBeStored(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)
	lines := commandLines(newRoot(io.Discard, io.Discard), nil, "a\xffb")

	for _, args := range lines {
		out, code := run(t, url, args...)
		if strings.Contains(out, "SQLSTATE") || code == exitFailure {
			t.Errorf("millrace %q: exit code %d: %s", args, code, out)
		}
	}

	if len(lines) < 60 {
		t.Errorf("only %d command lines were tried", len(lines))
	}

	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"orders", "show", "a\xffb"}, `"a\xffb": is not UTF-8`},
		{[]string{"failed", "list", "--key", "a\xffb"}, "--key: is not UTF-8"},
		{[]string{"activity", "--since", "31.01.2026"}, `is "31.01.2026", expected a time such as 2026-01-31T12:00:00Z, or a duration such as 2h`},
		{[]string{"orders", "cancel", "o", "--reason", "\xff"}, "--reason: is not UTF-8"},
	} {
		if out, code := run(t, url, c.args...); code != exitUsage || !strings.Contains(out, c.says) {
			t.Errorf("millrace %q: exit code %d, expected %d with %q: %s", c.args, code, exitUsage, c.says, out)
		}
	}

	for _, at := range []string{"2h", "2026-01-31T12:00Z", "2026-01-31 12:00:00+0100", "2026-01-31"} {
		if out, code := run(t, url, "failed", "list", "--since", at); code != 0 {
			t.Errorf("--since %s: exit code %d: %s", at, code, out)
		}
	}
}

// Even with --unchecked, a line that cannot be stored is rejected, and its number is
// reported.
func TestPublishUncheckedRejectsOnlyWhatCannotBeStored(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t)
	lines := []string{
		"\ufeff" + orderOf("first"),
		`{"order":{"id":"a\u0000b"}}`,
		`{"order":{"id":"x"}}`,
		"\xff nonsense \x00",
		`{"order":{"id":"` + strings.Repeat("x", 2001) + `"}}`,
		`{"order":{"id":"\ud800"}}`,
		"{\"order\":{\"id\":\"a\u2028b\"}}",
		orderOf("last"),
	}

	file := filepath.Join(t.TempDir(), "orders.ndjson")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}

	out, code := run(t, url, "publish", "orders.created", "--unchecked", "--file", file)
	want := "published 6 to orders.created\n" +
		"rejected line 2: key: contains the character U+0000, which cannot be stored\n" +
		"rejected line 5: key: has 2001 bytes, expected at most 2000\n"

	if code != exitRejected || !strings.HasPrefix(out, want) {
		t.Errorf("exit code %d, got %s, expected %s", code, out, want)
	}

	// The byte order mark must be removed; otherwise it would become part of the
	// first message.
	if n := pgtest.Value[int64](t, pool, `SELECT count(*) FROM outbox WHERE payload = ANY($1)`, [][]byte{[]byte(orderOf("first")), []byte(lines[3]), []byte(lines[6])}); n != 3 {
		t.Errorf("%d of 3 messages are in the outbox unchanged", n)
	}

	if out, code := run(t, url, "publish", "orders.created", "--unchecked", `{"order":{"id":"\u0000"}}`); code != exitRejected || !strings.Contains(out, "rejected: key: contains the character U+0000") {
		t.Errorf("one message: exit code %d: %s", code, out)
	}

	out, code = run(t, url, "publish", "orders.created", "--file", file)
	if code != exitRejected || !strings.HasPrefix(out, "published 2 to orders.created\n") || !strings.Contains(out, "rejected line 2: order.id: is \"a\\x00b\"") {
		t.Errorf("checked: exit code %d: %s", code, out)
	}
}
