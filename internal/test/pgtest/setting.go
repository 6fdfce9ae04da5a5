package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Root returns the root directory of the repository.
func Root(tb testing.TB) string {
	tb.Helper()

	root, err := findRoot()
	if err != nil {
		tb.Fatal(err)
	}

	return root
}

// findRoot looks upwards: tests run in the directory of their package.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}

	for {
		if _, err := os.Stat(filepath.Join(dir, "scripts", "services.sh")); err == nil {
			return dir, nil
		}

		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("tests must run inside the repository")
		}

		dir = parent
	}
}

// Setting returns the address of a test server: from the environment, else from
// .local/test/env, which scripts/services.sh writes. It is empty if neither has
// it.
func Setting(variable string) (string, error) {
	if value := os.Getenv(variable); value != "" {
		return value, nil
	}

	root, err := findRoot()
	if err != nil {
		return "", err
	}

	content, err := os.ReadFile(filepath.Join(root, ".local", "test", "env"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}

	if err != nil {
		return "", fmt.Errorf("reading addresses of test servers: %w", err)
	}

	for line := range strings.Lines(string(content)) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), "export "+variable+"="); found {
			return strings.Trim(value, "'"), nil
		}
	}

	return "", nil
}
