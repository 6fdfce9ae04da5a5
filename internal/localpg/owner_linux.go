package localpg

import (
	"errors"
	"os/exec"
	"syscall"
)

// asOwner runs fn as the user of the server. If this process is root, the whole process
// runs as that user until fn returns. Its saved IDs stay root's, so that it can switch
// back; programs started by fn do not inherit them.
func (h home) asOwner(fn func() error) error {
	if h.owner == 0 {
		return fn()
	}

	id := int(h.owner)
	groups, err := syscall.Getgroups()

	err = errors.Join(err, syscall.Setgroups(nil), syscall.Setresgid(id, id, 0), syscall.Setresuid(id, id, 0))
	if err == nil {
		err = fn()
	}

	return errors.Join(err, syscall.Setresuid(0, 0, 0), syscall.Setresgid(0, 0, 0), syscall.Setgroups(groups))
}

// assign makes cmd run as the user of the server.
func (h home) assign(cmd *exec.Cmd) {
	if h.owner != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: h.owner, Gid: h.owner}}
	}
}
