package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Root returns the root directory of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0) //nolint:dogsled // only the file matters

	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// Setting returns the address of a test server from the environment, or else from
// .local/test/env, which scripts/services.sh writes. It is empty if neither has it.
func Setting(variable string) (string, error) {
	if value := os.Getenv(variable); value != "" {
		return value, nil
	}

	content, err := os.ReadFile(filepath.Join(Root(), ".local", "test", "env"))
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
