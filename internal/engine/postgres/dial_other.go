//go:build !linux

package postgres

import (
	"syscall"
	"time"
)

func abandonAfter(time.Duration) func(network, address string, conn syscall.RawConn) error {
	return nil
}
