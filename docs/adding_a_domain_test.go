// Package docs_test proves that the code in the documentation works.
package docs_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// block is a piece of code on a page, with the text that precedes it.
type block struct {
	before, language, code string
}

var fence = regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```")

func blocksOf(page string) []block {
	var blocks []block

	end := 0
	for _, at := range fence.FindAllStringSubmatchIndex(page, -1) {
		blocks = append(blocks, block{before: page[end:at[0]], language: page[at[2]:at[3]], code: page[at[4]:at[5]]})
		end = at[1]
	}

	return blocks
}

// path matches file names in text.
var path = regexp.MustCompile("`([a-z0-9_/]+\\.(?:go|sql))`")

// apply follows a page in the repository at root: it creates the files in Go and SQL
// blocks, adds the lines of diff blocks and returns the commands of console blocks. A
// block belongs to the file last named before it.
func apply(t *testing.T, root, page string) (commands []string) {
	t.Helper()

	file := ""

	for _, b := range blocksOf(page) {
		if names := path.FindAllStringSubmatch(b.before, -1); names != nil {
			file = filepath.Join(root, names[len(names)-1][1])
		}

		switch b.language {
		case "go", "sql":
			write(t, file, b.code)
		case "diff":
			insert(t, file, b.code)
		case "console":
			for line := range strings.Lines(b.code) {
				commands = append(commands, strings.TrimSpace(strings.TrimPrefix(line, "$ ")))
			}
		}
	}

	return commands
}

func write(t *testing.T, file, text string) {
	t.Helper()

	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(file, []byte(text), 0o600); err != nil { //nolint:gosec // the names are those of our own page
		t.Fatal(err)
	}
}

// insert adds a diff's new lines after its line of context.
func insert(t *testing.T, file, diff string) {
	t.Helper()

	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	context, added, found := strings.Cut(diff, "\n")
	context = strings.TrimPrefix(context, " ") + "\n"
	added = strings.ReplaceAll("\n"+strings.TrimSuffix(added, "\n"), "\n+", "\n")[1:] + "\n"

	if !found || bytes.Count(source, []byte(context)) != 1 {
		t.Fatalf("%s has the line %q %d times, expected once", file, context, bytes.Count(source, []byte(context)))
	}

	write(t, file, strings.Replace(string(source), context, context+added, 1))
}

// copyRepository returns a copy of the working tree, including uncommitted changes.
func copyRepository(t *testing.T) string {
	t.Helper()

	root := t.TempDir()

	for name := range strings.Lines(run(t, "..", "git", "ls-files", "--cached", "--others", "--exclude-standard")) {
		name = strings.TrimSpace(name)

		data, err := os.ReadFile(filepath.Join("..", name))
		if os.IsNotExist(err) {
			continue // deleted and not yet committed
		}

		if err != nil {
			t.Fatal(err)
		}

		write(t, filepath.Join(root, name), string(data))
	}

	return root
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()

	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	// The compiler's output does not depend on the directory, so it can be cached.
	cmd.Env = append(os.Environ(), "GOFLAGS=-trimpath")

	var stderr strings.Builder

	cmd.Stderr = &stderr

	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, output, stderr.String())
	}

	return string(output)
}

func TestTheExamplesOfAddingADomainWork(t *testing.T) {
	t.Parallel()

	if testing.Short() {
		t.Skip("it compiles the service again")
	}

	page, err := os.ReadFile("adding-a-domain.md")
	if err != nil {
		t.Fatal(err)
	}

	root := copyRepository(t)
	commands := apply(t, root, string(page))

	if len(commands) != 3 {
		t.Errorf("the page has the commands %q, expected 3", commands)
	}

	run(t, root, "go", "tool", "wire", ".")
	run(t, root, "go", "vet", ".", "./internal/shop/warehouse", "./internal/shop/loyalty")

	if unformatted := run(t, root, "gofmt", "-l", "wire.go", "internal/app", "internal/shop/warehouse", "internal/shop/loyalty"); unformatted != "" {
		t.Errorf("the page prints code that is not formatted: %s", unformatted)
	}

	for _, command := range commands {
		if words := strings.Fields(command); words[0] == "go" {
			run(t, root, words[0], words[1:]...)
		}
	}

	run(t, root, "go", "tool", "-modfile=tools/go.mod", "golangci-lint", "run", "--allow-parallel-runners", "./internal/shop/warehouse/...", "./internal/shop/loyalty/...")
}

// TestTheReadmeShowsAnExampleOfThePage checks that the Go code in the README is on the
// page.
func TestTheReadmeShowsAnExampleOfThePage(t *testing.T) {
	t.Parallel()

	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}

	page, err := os.ReadFile("adding-a-domain.md")
	if err != nil {
		t.Fatal(err)
	}

	_, section, _ := strings.Cut(string(readme), "\n## Adding a handler\n")
	section, _, _ = strings.Cut(section, "\n## ")

	blocks := blocksOf(section)
	if len(blocks) != 2 {
		t.Errorf("README has %d blocks of code on adding a handler, expected 2", len(blocks))
	}

	for _, b := range blocks {
		if !strings.Contains(string(page), strings.TrimSpace(b.code)) {
			t.Errorf("the page does not have this code of README:\n%s", b.code)
		}
	}
}
