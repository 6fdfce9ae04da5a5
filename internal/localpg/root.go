package localpg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// unprivileged is the user that runs Postgres if this process is root: nobody,
// which every Linux has.
const unprivileged = 65534

// reexecEnv marks the process that runs a job for root.
const reexecEnv = "MILLRACE_TEST_LOCALPG_JOB"

// Reexec runs the unprivileged job and exits, if this process was started for it.
// Call it first in main.
func Reexec() {
	if os.Getenv(reexecEnv) == "" {
		return
	}

	var j job

	err := json.NewDecoder(os.Stdin).Decode(&j)
	if err == nil {
		err = j.run()
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}

	os.Exit(0)
}

// locate returns the directory of the server without creating it.
func locate(dir string) (home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return home{}, fmt.Errorf("finding %s: %w", dir, err)
	}

	h := home{root: dir}

	if os.Geteuid() == 0 {
		h.uid = unprivileged

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

	if h.uid != 0 {
		if err := os.Chown(h.root, int(h.uid), int(h.uid)); err != nil {
			return fmt.Errorf("giving %s to the user of postgres: %w", h.root, err)
		}
	}

	return nil
}

// reachable reports whether every user can enter dir. Parents that do not exist
// yet will allow it.
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

// runAs makes cmd run as the user of the server.
func (h home) runAs(cmd *exec.Cmd) {
	cmd.Dir = h.root
	cmd.Env = append(os.Environ(), "HOME="+h.root)

	if h.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: h.uid, Gid: h.uid}}
	}
}

// delegate runs the job in a copy of this program as the server's user, who may
// not be able to access the original.
func (h home) delegate(ctx context.Context, j job) error {
	program := filepath.Join(h.root, "starter")
	if err := copySelf(program); err != nil {
		return err
	}
	defer os.Remove(program) //nolint:errcheck // it is only a copy

	input, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("encoding job: %w", err)
	}

	cmd := exec.CommandContext(ctx, program)
	h.runAs(cmd)
	// A separate process group keeps Ctrl-C in the terminal from Postgres.
	cmd.SysProcAttr.Setpgid = true
	cmd.Env = append(cmd.Env, reexecEnv+"=1")
	cmd.Stdin = bytes.NewReader(input)

	// A file and not a pipe: Postgres inherits it and would keep a pipe open.
	output, err := os.CreateTemp(h.root, "start-*.log")
	if err != nil {
		return fmt.Errorf("creating log: %w", err)
	}
	defer os.Remove(output.Name()) //nolint:errcheck // read below
	defer output.Close()           //nolint:errcheck // read below

	cmd.Stdout, cmd.Stderr = output, output

	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(output.Name())

		return fmt.Errorf("starting postgres as user %d: %w\n%s", h.uid, err, strings.TrimSpace(string(text)))
	}

	return nil
}

func copySelf(to string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}

	in, err := os.Open(self)
	if err != nil {
		return fmt.Errorf("reading this program: %w", err)
	}
	defer in.Close() //nolint:errcheck // only read

	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return fmt.Errorf("copying this program: %w", err)
	}

	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}

	if err != nil {
		return fmt.Errorf("copying this program: %w", err)
	}

	return nil
}
