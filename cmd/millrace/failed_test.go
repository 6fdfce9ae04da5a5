package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// stopped creates a database with stopped messages for the consumer that places
// orders, one for each payload, and returns its address.
func stopped(t *testing.T, payloads ...string) (url string, pool *pgxpool.Pool) {
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

func TestFailedCommandsSelect(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, orderOf("key0"), orderOf("key1"), "{}", orderOf("key3"))
	group := pgtest.Value[string](t, pool, `SELECT min(group_id) FROM failed_messages`)

	expectEach(t, url, []invocation{
		{"failed list", 0, "no luck with 2"},
		{"failed groups", 0, "no luck with ?"},
		{"failed count --by consumer", 0, "fulfilment.place"},
		{"failed count --by colour", exitUsage, "there is no property to count by colour"},
		{"failed list --limit 0", exitUsage, `invalid argument "0" for "--limit"`},
		{"failed groups --limit -1", exitUsage, `invalid argument "-1" for "--limit"`},
		{"failed list --state maybe", exitUsage, "there is no state maybe"},
		{"failed list --since -5h", exitUsage, `invalid argument "-5h" for "--since" flag: is -5h, which is in the future`},
		{"failed list --since yesterday", exitUsage, `invalid argument "yesterday" for "--since"`},
		{"failed list --since 1h --until 2999-01-01", 0, "key0"},
		{"failed list --message x", exitUsage, "expected a UUID"},
		{"failed list --topic orders.creatd", exitUsage, "there is no topic orders.creatd; did you mean orders.created?"},
		{"failed list --consumer fulfilment.palce", exitUsage, "did you mean fulfilment.place?"},
		{"failed list --topic user.created", 0, "ID"},
		{"failed groups", 0, group},
		{"failed note " + group + " ask-ada --by bob", 0, "noted on group " + group},
		{"failed groups", 0, "bob: ask-ada"},
		{"failed note nothing x", exitUsage, "nothing"},
		{"failed show 3", 0, "0.9"},
		{"failed show 3 --diff", 0, "has not been edited"},
		{"failed requeue", exitUsage, "nothing is selected"},
		{"failed requeue --all --topic orders.created", exitUsage, "all cannot be combined"},
		{"failed requeue x", exitUsage, "expected a number"},
		{"failed requeue 99", exitNotFound, "there is no failed message 99"},
		{"failed requeue 1 --rate -1", exitUsage, "--rate: is -1"},
		{"failed requeue --group " + group + " --dry-run", exitRejected, "would requeue 3 of 4"},
		{"failed requeue --group nothing", exitUsage, "there is no group nothing"},
		{"failed requeue --topic user.created", 0, "requeued 0 of 0"},
		{"failed requeue --topic user.created --wait", 0, "requeued 0 of 0"},
	})

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM failed_messages WHERE state = 'stopped'`); n != 4 {
		t.Errorf("%d messages are stopped, expected all", n)
	}
}

func TestFailedCommandsAct(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, orderOf("key0"), orderOf("key1"), "{}", orderOf("key3"))

	expectEach(t, url, []invocation{
		{"failed requeue 1 2 --by bob --why fixed", 0, "requeued 2 of 2"},
		{"failed requeue 1", exitFailure, "message 1 is already waiting"},
		{"failed waiting", 0, "fulfilment.place"},
		{"failed waiting 1", 0, "1 of 1"},
		{"failed waiting 3", exitNotFound, "there is no waiting message 3"},
		{"failed retry", exitUsage, "nothing is selected"},
		{"failed retry 3", exitNotFound, "there is no waiting message 3"},
		{"failed retry 1 --by bob", 0, "1 key is due now, with 1 message\n1 waits for fulfilment.place: no service is responding"},
		{"failed skip 2 --by bob --why later", 0, "skipped message 2"},
		{"failed requeue 2", 0, "requeued 1 of 1"},
		{"failed retry --all --wait --timeout 10ms", exitFailure, "2 not tried yet, but due"},
		{"failed requeue --all", exitRejected, "refused message 3: order.id: is missing"},
		{"failed show 1", 0, "by bob: fixed"},
		{"failed discard 3", exitUsage, "--why: is missing"},
		{"failed discard --why junk", exitUsage, "nothing is selected"},
		{"failed discard --reason handler_error --why junk --dry-run", 0, "would discard 1 of 1"},
		{"failed discard --reason handler_error --why junk", 0, "discarded 1 of 1"},
		{"failed edit 3", exitFailure, "is already discarded"},
		{"failed list --state resolved", 0, "key2"},
		{"failed list --state waiting", 0, "key1"},
		{"activity --who bob --action skipped", 0, "later"},
		{"activity --action discarded", 0, "junk"},
	})

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM failed_messages WHERE state = 'waiting'`); n != 3 {
		t.Errorf("%d messages wait", n)
	}
}

func TestFailedExportHasEverything(t *testing.T) {
	t.Parallel()

	url, _ := stopped(t, orderOf("key0"), "\xff")
	if out, code := run(t, url, "failed", "discard", "2", "--by", "bob", "--why", "junk"); code != 0 {
		t.Fatal(out)
	}

	out, code := run(t, url, "failed", "export")

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

	if out, _ := run(t, url, "failed", "requeue", "1", "--json"); !strings.Contains(out, `"done": 1`) {
		t.Errorf("got %s", out)
	}
}

// editor sets EDITOR to a script, which receives the file name as $1.
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

// Tests that set the environment cannot run in parallel.

func TestFailedEditValidatesAndLetsEditAgain(t *testing.T) {
	url, pool := stopped(t, `{"order":{"id":"key0","product_id":"p","quantity":0,"total_amount":1}}`)

	// The first edit makes it worse, and the second one fixes it.
	editor(t, `[ "$1" = --wait ] || exit 9
cp "$2" "$2~" # like an editor with backups
if grep -q '"quantity": 0' "$2"; then sed -i 's/"quantity": 0/"quantity": -1/' "$2"; else sed -i 's/"quantity": -1/"quantity": 3/' "$2"; fi`)

	out, code := answer(t, url, "y\n", "failed", "edit", "1", "--by", "bob", "--why", "typo")
	if code != 0 || !strings.Contains(out, "not saved: order.quantity: ") || !strings.Contains(out, "Edit again?") ||
		!strings.Contains(out, "-    \"quantity\": 0,\n+    \"quantity\": 3,") {
		t.Errorf("exit code %d:\n%s", code, out)
	}

	got := pgtest.Value[string](t, pool, `SELECT convert_from(edited, 'UTF8') FROM failed_messages`)
	if got != `{"order":{"id":"key0","product_id":"p","quantity":3,"total_amount":1}}` {
		t.Errorf("saved %s", got)
	}

	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	if out, code := run(t, url, "failed", "show", "1", "--diff", "--json"); code != 0 || !strings.Contains(out, `+    \"quantity\": 3,`) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestFailedEditKeepsADraftThatIsGivenUp(t *testing.T) {
	url, pool := stopped(t, orderOf("key0"))

	editor(t, `echo nonsense > "$2"`)

	out, code := answer(t, url, "n\n", "failed", "edit", "1")
	_, rest, _ := strings.Cut(out, "the draft is in ")
	draft, _, _ := strings.Cut(rest, ")")

	if text, err := os.ReadFile(draft); code != exitRejected || err != nil || string(text) != "nonsense\n" {
		t.Errorf("exit code %d, draft %q, %v:\n%s", code, text, err, out)
	}

	file, err := os.Stat(draft)
	if err != nil || file.Mode() != 0o600 {
		t.Errorf("the draft is %v, %v", file, err)
	}

	dir, err := os.Stat(filepath.Dir(draft))
	if err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("the directory of the draft is %v, %v", dir, err)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM operator_actions`); n != 0 {
		t.Errorf("%d actions", n)
	}
}

func TestFailedEditLeavesNothingBehindWithoutAnEdit(t *testing.T) {
	url, pool := stopped(t, oneOrder)

	for _, c := range []struct {
		script string
		code   int
		says   string
	}{
		{`cp "$2" "$2~"; exit 7`, exitFailure, "set VISUAL or EDITOR"}, // like an editor that keeps a backup and crashes
		{`cp "$2" "$2~"; rm "$2"`, exitFailure, "reading the draft"},
		{`cp "$2" "$2~"`, 0, "the payload is the original"},
	} {
		editor(t, c.script)

		if out, code := run(t, url, "failed", "edit", "1"); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%s: exit code %d: %s", c.script, code, out)
		}

		if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v, %v", c.script, left, err)
		}
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM operator_actions`); n != 0 {
		t.Errorf("%d actions", n)
	}
}

func TestFailedEditTakesAFile(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, "{}")

	if out, code := answer(t, url, orderOf("key0")+"\n", "failed", "edit", "1", "--file", "-"); code != 0 || !strings.Contains(out, "+++ edited") {
		t.Errorf("exit code %d: %s", code, out)
	}

	if got := pgtest.Value[string](t, pool, `SELECT convert_from(edited, 'UTF8') FROM failed_messages`); got != orderOf("key0") {
		t.Errorf("saved %s", got)
	}

	if out, code := answer(t, url, "{}", "failed", "edit", "1", "--file", "-"); code != exitRejected || !strings.Contains(out, "order.id: is missing") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestFailedRequeueLeavesOvertakenMessages(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, orderOf("key0"), orderOf("key1"), "{}")

	err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
		return failed.Overtake(t.Context(), tx, "fulfilment.place", []failed.Delivery{
			{MessageID: event.NewID(), Key: "key0"}, {MessageID: event.NewID(), Key: "key0"},
		})
	})
	if err != nil {
		t.Fatal(err)
	}

	expectEach(t, url, []invocation{
		{"failed show 1", 0, "overtaken   is overtaken: 2 later messages with key key0 were applied"},
		{"failed show 2", 0, "key1"},
		{"failed requeue 1 2 --dry-run", exitFailure, "would requeue 1 of 2 stopped messages\nrefused message 1: is overtaken: 2 later"},
		{"failed requeue 1 2 --json", exitFailure, `"overtaken": 1`},
		{"failed requeue 1", exitFailure, "--overtaken also requeues 1 overtaken message"},
		{"failed requeue --all", exitRejected, "requeued 0 of 2"}, // one has an invalid payload
	})

	edited := strings.Replace(orderOf("key0"), `"quantity":1`, `"quantity":2`, 1)
	if out, code := answer(t, url, edited, "failed", "edit", "1", "--file", "-", "--requeue"); code != exitFailure || !strings.Contains(out, "is overtaken: 2 later") {
		t.Errorf("an edit overwrites what later messages did: %d\n%s", code, out)
	}

	expect(t, url, "failed requeue 1 --overtaken", 0, "requeued 1 of 1")
}

func TestFailedEditChangesTheKeyOnlyIfItIsNamed(t *testing.T) {
	t.Parallel()

	url, _ := stopped(t, orderOf("key0"), "{}")

	for _, c := range []struct {
		edit string
		args string
		code int
		says string
	}{
		{orderOf("other"), "failed edit 1 --file -", exitFailure, "changes the key from key0 to other"},
		{orderOf("other"), "failed edit 1 --file - --new-key wrong", exitFailure, "changes the key from key0 to other"},
		{orderOf("other"), "failed edit 1 --file - --new-key other", 0, "+++ edited"},
		{orderOf("key0"), "failed edit 1 --file -", exitFailure, "changes the key from other to key0"},
		{orderOf("key0"), "failed edit 1 --file - --new-key key0", 0, "the payload is the original"},
		{orderOf("key1"), "failed edit 2 --file - --requeue", 0, "requeued 1 of 1"},
	} {
		if out, code := answer(t, url, c.edit, strings.Split(c.args, " ")...); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("millrace %s: exit code %d, expected %d with %q; output:\n%s", c.args, code, c.code, c.says, out)
		}
	}
}

func TestFailedEditEditsManyMessages(t *testing.T) {
	t.Parallel()

	url, _ := stopped(t, orderOf("key0"), orderOf("key1"), `{"order":"none"}`)

	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"1", "--dry-run"}, exitUsage, "--patch and --jq edit several"},
		{[]string{"1", "2"}, exitUsage, "edit takes the id of one message"},
		{[]string{"--all", "--patch", "[]"}, exitUsage, "patch: is not a JSON object, expected a JSON object"},
		{[]string{"1", "--patch", "{}", "--file", "-"}, exitUsage, "cannot be combined"},
		{[]string{"1", "2", "--patch", `{"order":{"quantity":7}}`, "--dry-run"}, 0, "would edit 2 of 2 stopped messages\nmessage 1:\n--- now\n+++ edited"},
		{[]string{"--all", "--patch", `{"order":{"quantity":7}}`}, exitRejected, "edited 2 of 3 stopped messages"},
		{[]string{"1", "--patch", `{"order":{"quantity":7}}`}, 0, "the edit changes nothing in 1 message"},
		{[]string{"1", "2", "--patch", `{"order":{"quantity":8}}`, "--dry-run"}, 0, "would edit 2 of 2"},
		{[]string{"1", "--jq", ".order.quantity |="}, exitUsage, `jq: unexpected EOF at character 19 of ".order.quantity |="`},
		{[]string{"1", "--jq", ".", "--patch", "{}"}, exitUsage, "cannot be combined"},
		{[]string{"1", "2", "--jq", ".order.quantity += 1", "--dry-run"}, 0, "-    \"quantity\": 7,\n+    \"quantity\": 8,"},
		{[]string{"--all", "--jq", ".order.quantity += 1"}, exitRejected, "refused message 3: jq: expected an object but got: string"},
		{[]string{"1", "2", "--jq", `.order.quantity = "two"`, "--requeue"}, exitRejected, "order.quantity: is a JSON string"},
		{[]string{"1", "2", "--jq", ".order.quantity += 1", "--requeue"}, 0, "requeued 2 of 2"},
	} {
		if out, code := answer(t, url, "", append([]string{"failed", "edit"}, c.args...)...); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("millrace failed edit %s: exit code %d, expected %d with %q; output:\n%s", c.args, code, c.code, c.says, out)
		}
	}
}

func TestAnActionThatWasDoneIsReportedAlthoughWhatFollowsIsUnknown(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, orderOf("key0"), orderOf("key0"))

	if _, err := pool.Exec(t.Context(), `ALTER TABLE paused_consumers RENAME TO away`); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct{ args, says string }{
		{"failed requeue 1 2 --overtaken", "requeued 2 of 2"},
		{"failed retry 1", "1 key is due now, with 2 messages"},
		{"failed skip 1", "skipped message 1"},
	} {
		if out := expect(t, url, c.args, 0, c.says); !strings.Contains(out, "could not determine what is holding up the messages: ") {
			t.Errorf("millrace %s: %s", c.args, out)
		}
	}
}
