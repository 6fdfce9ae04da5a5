package brokertest

import (
	"context"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// Server is a broker of the test's own, to be killed and started again.
type Server struct {
	Port string

	tb     testing.TB
	script string
	dir    string
}

// NewServer starts a broker by one of the scripts of this repository: kafka.sh
// or rabbitmq.sh.
func NewServer(tb testing.TB, script string) *Server {
	tb.Helper()

	// Tests run in the directory of their package, two below the root.
	path, err := filepath.Abs(filepath.Join("..", "..", "scripts", script))
	if err != nil {
		tb.Fatal(err)
	}

	s := &Server{Port: FreePort(tb), tb: tb, script: path, dir: tb.TempDir()}
	s.Do("start")
	tb.Cleanup(func() { s.Do("kill") })

	return s
}

// Do starts, stops or kills the server.
func (s *Server) Do(action string) {
	s.tb.Helper()

	cmd := exec.CommandContext(context.Background(), s.script, action, s.dir, s.Port)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.tb.Fatalf("%s %s: %v\n%s", s.script, action, err, out)
	}
}

// FreePort returns a port that nobody listens on, nor on its successor, which
// brokers use too. Both lie below those that the kernel gives to connections
// (32768 and up, ip(7)), so that nobody gets them by chance meanwhile.
func FreePort(tb testing.TB) string {
	tb.Helper()

	for range 100 {
		if port := 10_000 + 2*rand.N(10_000); free(port) && free(port+1) {
			return strconv.Itoa(port)
		}
	}

	tb.Fatal("found no free port")

	return ""
}

func free(port int) bool {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}

	return listener.Close() == nil
}
