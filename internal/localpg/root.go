package localpg

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// unprivileged is the user that runs Postgres if this process is root: nobody, which
// exists on all Linux systems.
const unprivileged = 65534

// locate returns the directory of the server without creating it.
func locate(dir string) (home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return home{}, fmt.Errorf("finding %s: %w", dir, err)
	}

	h := home{root: dir}

	if os.Geteuid() == 0 {
		h.owner = unprivileged

		if !reachable(filepath.Dir(dir)) {
			sum := sha256.Sum256([]byte(dir))
			h.root = "/var/lib/millrace-" + hex.EncodeToString(sum[:4])
		}
	}

	return h, nil
}

// prepare creates the directory of the server.
func (h home) prepare() error {
	// Only the last directory is private: Postgres must be able to enter its parents.
	err := errors.Join(os.MkdirAll(filepath.Dir(h.root), 0o755), os.MkdirAll(h.root, 0o700)) //nolint:gosec // see above
	if err != nil {
		return fmt.Errorf("creating %s: %w", h.root, err)
	}

	if h.owner != 0 {
		if err := os.Chown(h.root, int(h.owner), int(h.owner)); err != nil {
			return fmt.Errorf("changing the owner of %s to the operating-system user postgres: %w", h.root, err)
		}
	}

	return nil
}

// reachable reports whether all users can enter dir. Missing parents will be created
// accordingly.
func reachable(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			return false
		}

		if dir == filepath.Dir(dir) {
			return true
		}
	}
}
