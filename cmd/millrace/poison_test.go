package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// poisoned makes a database with entries of the consumer that places orders, one
// for each payload, and returns its address.
func poisoned(t *testing.T, payloads ...string) (url string, pool *pgxpool.Pool) {
	t.Helper()

	url = pgtest.URL(t)

	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(pool.Close)

	store := failed.NewStore(failed.Config{Release: "0.9"}, pool)

	for i, payload := range payloads {
		err := store.Stop(t.Context(), failed.Entry{
			Consumer: "fulfilment.place", Topic: "orders.created", MessageID: event.NewID(), Origin: "test", Key: fmt.Sprint("key", i),
			Payload: []byte(payload), Reason: event.ReasonFailed, Error: fmt.Sprintf("no luck with %d \x1b[31mbytes", len(payload)),
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	return url, pool
}

func orderOf(id string) string { return strings.Replace(oneOrder, `"o"`, `"`+id+`"`, 1) }

func TestPoisonCommandsSelectAndAct(t *testing.T) {
	t.Parallel()

	url, pool := poisoned(t, orderOf("a"), orderOf("bb"), "{}", orderOf("d"))
	group := pgtest.Value[string](t, pool, `SELECT min(group_id) FROM failed_messages`)

	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"poison list", 0, "no luck with 2"},
		{"poison list --group-by cause", 0, "no luck with ?"},
		{"poison list --group-by consumer", 0, "fulfilment.place"},
		{"poison list --group-by colour", exitUsage, `--group-by: is "colour"`},
		{"poison list --limit 0", exitUsage, "--limit: is 0"},
		{"poison list --state maybe", exitUsage, `--state: is "maybe"`},
		{"poison list --since yesterday", exitUsage, `--since: is "yesterday"`},
		{"poison list --since 1h --until 2999-01-01", 0, "key0"},
		{"poison list --message x", exitUsage, "expected a UUID"},
		{"poison groups", 0, group},
		{"poison show 3", 0, "0.9"},
		{"poison diff 3", 0, "nobody has edited"},
		{"poison requeue", exitUsage, "which entries?"},
		{"poison requeue --all --topic x", exitUsage, "--all goes with neither"},
		{"poison requeue x", exitUsage, "expected a number"},
		{"poison requeue 99", exitNotFound, "no failed message 99"},
		{"poison requeue 1 --rate -1", exitUsage, "--rate: is -1"},
		{"poison requeue --group " + group + " --dry-run", exitRejected, "would requeue 3 of 4"},
		{"poison requeue --group nothing", 0, "requeued 0 of 0"},
		{"poison requeue 1 2 --by bob --why fixed", 0, "requeued 2 of 2"},
		{"poison requeue 1", exitFailure, "message 1 is waiting already"},
		{"poison requeue --all", exitRejected, "refused message 3: order.id: is missing"},
		{"poison show 1", 0, "by bob: fixed"},
		{"poison discard 3", exitUsage, "--why: is missing"},
		{"poison discard --why junk", exitUsage, "which entries?"},
		{"poison discard --reason handler_error --why junk --dry-run", 0, "would discard 1 of 1"},
		{"poison discard --reason handler_error --why junk", 0, "discarded 1 of 1"},
		{"poison edit 3", exitFailure, "is discarded already"},
		{"poison list --state waiting", 0, "key1"},
	} {
		out, code := run(t, url, strings.Split(c.args, " ")...)
		if code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("millrace %s: exit code %d, expected %d with %q; output:\n%s", c.args, code, c.code, c.says, out)
		}

		if strings.Contains(out, "\x1b") {
			t.Errorf("millrace %s: a message reached the terminal: %q", c.args, out)
		}
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM failed_messages WHERE state = 'waiting' AND consumer = 'fulfilment.place'`); n != 3 {
		t.Errorf("%d messages wait", n)
	}
}

func TestPoisonExportHasEverything(t *testing.T) {
	t.Parallel()

	url, _ := poisoned(t, orderOf("a"), "\xff")
	if out, code := run(t, url, "poison", "discard", "2", "--by", "bob", "--why", "junk"); code != 0 {
		t.Fatal(out)
	}

	out, code := run(t, url, "poison", "export")

	var got []failed.Exported

	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		var e failed.Exported
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}

		got = append(got, e)
	}

	if code != 0 || len(got) != 2 || string(got[1].Payload) != "\xff" || len(got[1].Actions) != 1 || got[1].Actions[0].Who != "bob" || got[0].Actions == nil {
		t.Errorf("exit code %d, %+v", code, got)
	}

	if out, _ := run(t, url, "poison", "requeue", "1", "--json"); !strings.Contains(out, `"done": 1`) {
		t.Errorf("got %s", out)
	}
}

// editor sets EDITOR to a script, which has the name of the file as $1.
func editor(t *testing.T, script string) {
	t.Helper()

	name := filepath.Join(t.TempDir(), "editor")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil { //nolint:gosec // a program must be executable
		t.Fatal(err)
	}

	t.Setenv("VISUAL", "")
	t.Setenv("EDITOR", name+" --wait")
	t.Setenv("TMPDIR", t.TempDir())
}

// answer runs a command with answers on standard input.
func answer(t *testing.T, url, answers string, args ...string) (out string, code int) {
	t.Helper()

	var buffer bytes.Buffer

	root := newRoot()
	root.SetIn(strings.NewReader(answers))
	root.SetOut(&buffer)
	root.SetErr(&buffer)
	root.SetArgs(append([]string{"--database-url", url}, args...))

	if err := root.ExecuteContext(t.Context()); err != nil {
		return buffer.String() + err.Error(), exitCode(err)
	}

	return buffer.String(), 0
}

// Tests that set the environment cannot run in parallel.

func TestPoisonEditValidatesAndLetsEditAgain(t *testing.T) {
	url, pool := poisoned(t, `{"order":{"id":"o","product_id":"p","quantity":0,"total_amount":1}}`)

	// The first time it makes it worse, the second time right.
	editor(t, `[ "$1" = --wait ] || exit 9
if grep -q '"quantity": 0' "$2"; then sed -i 's/"quantity": 0/"quantity": -1/' "$2"; else sed -i 's/"quantity": -1/"quantity": 3/' "$2"; fi`)

	out, code := answer(t, url, "y\n", "poison", "edit", "1", "--by", "bob", "--why", "typo")
	if code != 0 || !strings.Contains(out, "not saved: order.quantity: ") || !strings.Contains(out, "Edit again?") ||
		!strings.Contains(out, "-    \"quantity\": 0,\n+    \"quantity\": 3,") {
		t.Errorf("exit code %d:\n%s", code, out)
	}

	got := pgtest.Value[string](t, pool, `SELECT convert_from(edited, 'UTF8') FROM failed_messages`)
	if got != `{"order":{"id":"o","product_id":"p","quantity":3,"total_amount":1}}` {
		t.Errorf("saved %s", got)
	}

	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	if out, code := run(t, url, "poison", "diff", "1", "--json"); code != 0 || !strings.Contains(out, `+    \"quantity\": 3,`) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestPoisonEditKeepsADraftThatIsGivenUp(t *testing.T) {
	url, pool := poisoned(t, oneOrder)

	editor(t, `echo nonsense > "$2"`)

	out, code := answer(t, url, "n\n", "poison", "edit", "1")
	_, draft, _ := strings.Cut(out, "the draft is in ")

	if text, err := os.ReadFile(strings.TrimSuffix(draft, ")")); code != exitRejected || err != nil || string(text) != "nonsense\n" {
		t.Errorf("exit code %d, draft %q, %v:\n%s", code, text, err, out)
	}

	editor(t, "exit 7")

	if out, code := run(t, url, "poison", "edit", "1"); code != exitFailure || !strings.Contains(out, "set VISUAL or EDITOR") {
		t.Errorf("exit code %d: %s", code, out)
	}

	editor(t, "true")

	if out, code := run(t, url, "poison", "edit", "1"); code != 0 || !strings.Contains(out, "the payload is as it came") {
		t.Errorf("exit code %d: %s", code, out)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM operator_actions`); n != 0 {
		t.Errorf("%d actions", n)
	}
}

func TestPoisonEditTakesAFile(t *testing.T) {
	t.Parallel()

	url, pool := poisoned(t, "{}")

	if out, code := answer(t, url, oneOrder+"\n", "poison", "edit", "1", "--file", "-"); code != 0 || !strings.Contains(out, "+++ edited") {
		t.Errorf("exit code %d: %s", code, out)
	}

	if got := pgtest.Value[string](t, pool, `SELECT convert_from(edited, 'UTF8') FROM failed_messages`); got != oneOrder {
		t.Errorf("saved %s", got)
	}

	if out, code := answer(t, url, "{}", "poison", "edit", "1", "--file", "-"); code != exitRejected || !strings.Contains(out, "order.id: is missing") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
