package main

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

// completed returns what a shell offers for the last of args, without descriptions.
func completed(t *testing.T, args ...string) []string {
	t.Helper()

	var out bytes.Buffer

	root := newRoot(&out, io.Discard)
	root.SetArgs(append([]string{"__completeNoDesc"}, args...))

	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}

	lines := strings.Split(strings.TrimSpace(out.String()), "\n")

	return lines[:len(lines)-1] // the last line is for the shell
}

// nowhere is an address at which there is no database. This must neither delay nor
// prevent the completion of names.
const nowhere = "postgres://127.0.0.1:1/none"

func TestNamesCompleteWithoutADatabase(t *testing.T) {
	t.Parallel()

	for args, want := range map[string]string{
		"consumers pause fulfilment.c":         "fulfilment.place", // must not be offered
		"tail user.":                           "user.created user.updated user.events user.profile.updated",
		"publish orders.can":                   "orders.cancel.requested orders.cancelled orders.cancel.refused",
		"projections rebuild ":                 "users",
		"completion ":                          "bash fish powershell zsh",
		"failed list --reason p":               "panic pending",
		"failed list --state ":                 "waiting stopped resolved all",
		"failed list --consumer inventory.":    "inventory.restock",
		"failed waiting --consumer analytics.": "analytics.track",
		"failed list --topic inventory.":       "inventory.restocked",
		"failed count --by ":                   "consumer key reason release topic",
		"failed skip 1 --by ":                  "",
		"orders list --status p":               "paid payment_failed",
		"activity --action re":                 "resumed requeued reopened retried repaired",
		"audit --only st":                      "stock streams",
		"audit --only stock,str":               "stock,streams",
		"status --broker ":                     "embedded kafka rabbitmq",
		"status --log-level ":                  "debug info warn error",
		"orders show ":                         "", // no database is reachable
		"publish orders.created ":              "",
		"failed list ":                         "",
	} {
		words := strings.Split("--database-url "+nowhere+" "+args, " ")
		got := completed(t, words...)

		if args == "consumers pause fulfilment.c" {
			if !slices.Contains(got, "fulfilment.charge") || slices.Contains(got, want) {
				t.Errorf("millrace %s: got %q", args, got)
			}

			continue
		}

		expected := strings.Fields(want)
		slices.Sort(expected)
		slices.Sort(got)

		if !slices.Equal(got, expected) {
			t.Errorf("millrace %s: got %q, expected %q", args, got, expected)
		}
	}
}

func TestIDsCompleteFromTheDatabase(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, oneOrder, "{}")
	group := pgtest.Value[string](t, pool, `SELECT max(group_id) FROM failed_messages`)

	if out, code := run(t, url, "failed", "requeue", "1", "--overtaken"); code != 0 {
		t.Fatal(out)
	}

	for _, sql := range []string{
		`INSERT INTO orders (id, status, version, total_amount, currency, lines) SELECT 'order_' || n, 'completed', 4, 1, 'USD', '[{}]' FROM generate_series(1, 2) n`,
		`INSERT INTO stock (product_id, supplied, available) VALUES ('product_1', 1, 1), ('product_2', 1, 1)`,
		`INSERT INTO api_tokens (name, role, digest, created_by, expires_at, revoked_at, revoked_by) VALUES
			('ci', 'viewer', sha256('ci'), 'ann', 'infinity', NULL, NULL), ('old', 'viewer', sha256('old'), 'ann', 'infinity', now(), 'ann')`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	for args, want := range map[string][]string{
		"orders show o":                    {"order_1", "order_2"},
		"orders cancel order_2":            {"order_2"},
		"orders show order_1 ":             {},
		"payments show ":                   {"order_1", "order_2"},
		"stock product_1 ":                 {"product_2"},
		"failed show ":                     {"2", "1"},
		"failed edit ":                     {"2"},
		"failed skip ":                     {"1"},
		"failed list --group " + group[:3]: {group},
		"users show ":                      {},
		"tokens revoke ":                   {"ci"},
	} {
		if got := completed(t, strings.Split("--database-url "+url+" "+args, " ")...); !slices.Equal(got, want) {
			t.Errorf("millrace %s: got %q, expected %q", args, got, want)
		}
	}
}

func TestACompletionDoesNotHang(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, oneOrder)

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()

	if _, err := tx.Exec(t.Context(), `LOCK TABLE orders IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}

	started := time.Now()

	if got := completed(t, "--database-url", url, "orders", "show", ""); len(got) != 0 || time.Since(started) > 20*time.Second {
		t.Errorf("got %q after %s", got, time.Since(started))
	}
}

// TestEveryNameCompletes fails for a new argument or flag that is neither completed
// nor listed here as free.
func TestEveryNameCompletes(t *testing.T) {
	t.Parallel()

	free := []string{
		"JSON", "MESSAGE", "NAME", "TEXT", "DIR", // arguments; NAME is that of a new token
		"--database-url", "--by", "--why", "--who", "--subject", "--key", "--message", "--limit", "--days", "--since", "--until", "--after", "--rate", "--for",
		"--older", "--ledger", "--timeout", "--config", "--file",
		"--search", "--activity", "--new-key", "--patch", "--jq", "--text", "--dir",
	}

	var visit func(cmd *cobra.Command)

	visit = func(cmd *cobra.Command) {
		names := strings.Fields(cmd.Use)[1:]

		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() != "bool" {
				names = append(names, "--"+f.Name)
			}
		})

		for _, name := range names {
			name = strings.Trim(name, "[.]")
			if completions[name] == nil && completions[cmd.CommandPath()+" "+name] == nil && !slices.Contains(free, name) {
				t.Errorf("%s: %s is not completed", cmd.CommandPath(), name)
			}
		}

		for _, child := range cmd.Commands() {
			visit(child)
		}
	}

	visit(newRoot(io.Discard, io.Discard))
}
