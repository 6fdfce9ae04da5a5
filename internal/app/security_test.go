package app_test

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// SECURITY.md names the test that verifies each promise, and DESIGN.md one that shows each
// of its known limits.
func TestThePageAboutSecurityNamesTestsThatExist(t *testing.T) {
	t.Parallel()

	root := os.DirFS("../..")
	exists := map[string]bool{}

	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		// Others change .local and .git while this test runs.
		if (path == ".local" || path == ".git") && entry.IsDir() {
			return fs.SkipDir
		}

		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}

		source, err := fs.ReadFile(root, path)
		for _, match := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(source), -1) {
			exists[match[1]] = true
		}

		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	for name, least := range map[string]int{"SECURITY.md": 30, "DESIGN.md": 30} {
		page, err := fs.ReadFile(root, name)
		if err != nil {
			t.Fatal(err)
		}

		_, limits, _ := strings.Cut(string(page), "\n## Known limits\n")
		limits, _, _ = strings.Cut(limits, "\n## ")

		for line := range strings.Lines(limits) {
			if strings.HasPrefix(line, "- ") && !strings.Contains(line, "`Test") {
				t.Errorf("%s: no test shows this limit: %s", name, line)
			}
		}

		named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
		if len(named) < least {
			t.Errorf("%s names %d tests only", name, len(named))
		}

		for _, match := range named {
			if !exists[match[1]] {
				t.Errorf("%s: there is no test %s", name, match[1])
			}
		}
	}
}
