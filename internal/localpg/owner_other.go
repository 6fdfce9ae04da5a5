//go:build !linux

package localpg

import "os/exec"

func (home) asOwner(fn func() error) error { return fn() }

func (home) assign(*exec.Cmd) {}
