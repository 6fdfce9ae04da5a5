package brokertest

import (
	"context"
	"os/exec"
	"path/filepath"
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

	s := &Server{Port: pgtest.FreePort(tb), tb: tb, script: filepath.Join(pgtest.Root(), "scripts", script), dir: tb.TempDir()}
	s.Do("start")
	tb.Cleanup(func() { s.Do("kill") })

	return s
}

// Do starts, stops or kills the server. The action "ctl" runs rabbitmqctl with args.
func (s *Server) Do(action string, args ...string) {
	s.tb.Helper()

	cmd := exec.CommandContext(context.Background(), s.script, append([]string{action, s.dir, s.Port}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.tb.Fatalf("%s %s: %v\n%s", s.script, action, err, out)
	}
}
