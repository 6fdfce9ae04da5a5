// Package server starts private servers that a proof may stop, kill and freeze: Postgres,
// Kafka and RabbitMQ, each on a port and in a directory of its own, so that several proofs
// can run at once.
package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// patience is how long a server may take to start or to stop.
const patience = 3 * time.Minute

// Root returns the root of the repository that contains the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}

	for {
		if _, err := os.Stat(filepath.Join(dir, "scripts", "kafka.sh")); err == nil {
			return dir, nil
		}

		if dir == filepath.Dir(dir) {
			return "", errors.New("the servers are started by scripts of the repository: run this within it")
		}

		dir = filepath.Dir(dir)
	}
}

// NewDir creates a directory for a run, which all users can enter, because Postgres does
// not run as root.
func NewDir() (string, error) {
	dir, err := os.MkdirTemp("", "millrace-proof-*")
	if err != nil {
		return "", err
	}

	return dir, os.Chmod(dir, 0o755)
}

// FreePort returns a port that is free together with its successor, which brokers use too.
// Both are below the range from which the kernel assigns ports to connections, so that
// they stay free.
func FreePort() (int, error) {
	for range 100 {
		port := 10_000 + 2*rand.IntN(10_000)
		if isFree(port) && isFree(port+1) {
			return port, nil
		}
	}

	return 0, errors.New("found no free port")
}

func isFree(port int) bool {
	listener, err := net.Listen("tcp", Loopback(port))
	if err != nil {
		return false
	}

	return listener.Close() == nil
}

// Loopback returns the address of a local port.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Until polls a condition. It returns an error that names what after limit.
func Until(ctx context.Context, what string, limit time.Duration, condition func() (bool, error)) error {
	for deadline := time.Now().Add(limit); ; {
		ok, err := condition()
		if ok || err != nil {
			return err
		}

		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s for %s", limit, what)
		}

		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
