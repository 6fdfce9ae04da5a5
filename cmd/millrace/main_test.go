package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Exit codes, as `millrace help` lists them.
const (
	exitFailure  = operate.ExitFailure
	exitUsage    = operate.ExitUsage
	exitNotFound = operate.ExitNotFound
	exitRejected = operate.ExitRejected
)

// run runs a command against a database and returns its output and exit code.
func run(t *testing.T, url string, args ...string) (out string, code int) {
	t.Helper()

	return answer(t, url, "", args...)
}

// answer is like run, with answers on standard input.
func answer(t *testing.T, url, answers string, args ...string) (out string, code int) {
	t.Helper()

	var buffer bytes.Buffer

	root := newRoot(&buffer, &buffer)
	root.SetIn(strings.NewReader(answers))
	root.SetArgs(append([]string{"--database-url", url}, args...))

	code = execute(t.Context(), root)

	return buffer.String(), code
}

// expect runs a command, given as words, checks its exit code and part of its output, and
// returns the output. No output may control the terminal.
func expect(t *testing.T, url, words string, code int, says string) (out string) {
	t.Helper()

	out, got := run(t, url, strings.Split(words, " ")...)
	if got != code || !strings.Contains(out, says) {
		t.Errorf("millrace %s: exit code %d, expected %d with %q; output:\n%s", words, got, code, says, out)
	}

	if strings.Contains(out, "\x1b") {
		t.Errorf("millrace %s: a message reached the terminal: %q", words, out)
	}

	return out
}

// invocation is a command, given as words, with its exit code and part of its output.
type invocation struct {
	words string
	code  int
	says  string
}

// expectEach runs commands one after the other.
func expectEach(t *testing.T, url string, invocations []invocation) {
	t.Helper()

	for _, i := range invocations {
		expect(t, url, i.words, i.code, i.says)
	}
}

const oneOrder = `{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1}}`

func TestExitCodesMeanSomething(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	expectEach(t, url, []invocation{
		{"version", 0, "dev"},
		{"help", 0, "Exit codes:"},
		{"nonsense", exitUsage, `unknown command "nonsense" for "millrace"`},
		{"order", exitUsage, "did you mean orders?"},
		{"orders shwo", exitUsage, `unknown command "shwo" for "millrace orders"; did you mean show?`},
		{"orders", 0, "Available Commands:"},
		{"orders show", exitUsage, "accepts 1 arg(s)"},
		{"orders show nope", exitNotFound, "there is no order nope"},
		{"orders list --nonsense", exitUsage, "unknown flag"},
		{"orders diagram", 0, "inventory_reserved --> cancelled: OrderCancelled"},
		{"orders cancel", exitUsage, "accepts 1 arg(s)"},
		{"orders cancel nope", exitNotFound, "there is no order nope"},
		{"failed show 1", exitNotFound, "there is no failed message 1"},
		{"failed show x", exitUsage, "expected a number"},
		{"failed list", 0, "REASON"},
		{"stock", 0, "AVAILABLE"},
		{"migrate status", 0, "00003_orders.sql"},
		{"config --broker pigeon", exitUsage, `broker.kind: is "pigeon"`},
		{"publish orders.created", exitUsage, "expected a topic and either"},
		{"publish nowhere {}", exitUsage, "there is no topic nowhere, expected one of orders.created"},
		{"publish orders.creatd {}", exitUsage, "did you mean orders.created?"},
		{"publish orders.created {}", exitRejected, "rejected: order.id: is missing"},
		{"publish orders.created " + oneOrder, 0, "published 1 to orders.created, id "},
		{"publish orders.created --file /does/not/exist", exitUsage, "no such file"},
	})
}

func TestPublishTakesFilesAndTellsWhichLinesAreBad(t *testing.T) {
	t.Parallel()

	file := filepath.Join(t.TempDir(), "orders.ndjson")
	if err := os.WriteFile(file, []byte(oneOrder+"\n\nnonsense\n"+strings.Replace(oneOrder, `"o"`, `"o2"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}

	url := pgtest.URL(t)
	out, code := run(t, url, "publish", "orders.created", "--file", file, "--json")

	var result publication
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&result); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	if code != exitRejected || result.Published != 2 || len(result.Rejected) != 1 || result.Rejected[0].Line != 3 {
		t.Errorf("exit code %d, %+v", code, result)
	}
}
