package brokertest

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
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

// FreePort returns a port that nobody listens on; its successor is likely free
// too.
func FreePort(tb testing.TB) string {
	tb.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer listener.Close()

	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}

	return port
}
