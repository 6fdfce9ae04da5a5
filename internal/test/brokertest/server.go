package brokertest

import (
	"context"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Server is a broker that a test may kill and restart.
type Server struct {
	Port string

	tb     testing.TB
	script string
	dir    string
}

// NewServer starts a broker with one of the repository's scripts: kafka.sh or
// rabbitmq.sh.
func NewServer(tb testing.TB, script string) *Server {
	tb.Helper()

	s := &Server{Port: FreePort(tb), tb: tb, script: filepath.Join(pgtest.Root(), "scripts", script), dir: tb.TempDir()}
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

// FreePort returns a free port whose successor, which brokers also use, is free too.
// Both are below the kernel's range of ephemeral ports (32768 and up, ip(7)), so that
// they stay free.
func FreePort(tb testing.TB) string {
	tb.Helper()

	for range 100 {
		if port := 10_000 + 2*rand.N(10_000); free(port) && free(port+1) {
			return strconv.Itoa(port)
		}
	}

	tb.Fatal("no free port found")

	return ""
}

func free(port int) bool {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}

	return listener.Close() == nil
}
