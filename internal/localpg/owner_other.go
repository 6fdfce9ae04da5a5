//go:build !linux

package localpg

func (home) asOwner(fn func() error) error { return fn() }
