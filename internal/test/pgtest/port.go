package pgtest

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// FreePort returns a free port whose successor, which brokers also use, is free too.
// Both are below the kernel's range of ephemeral ports (32768 and up, ip(7)), so that
// they stay free. It never returns the same port twice.
func FreePort(tb testing.TB) string {
	tb.Helper()

	for range 100 {
		if port := 10_000 + 2*rand.N(10_000); free(port) && free(port+1) {
			if _, is := given.LoadOrStore(port, nil); !is {
				return strconv.Itoa(port)
			}
		}
	}

	tb.Fatal("no free port found")

	return ""
}

// given holds the ports that FreePort has returned. Their servers may not be listening
// yet.
var given sync.Map

func free(port int) bool {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}

	return listener.Close() == nil
}
