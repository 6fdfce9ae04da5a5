package brokertest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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

// NewKafka starts a Kafka broker with additional settings, each as name=value. @PORT@ in
// a setting is the server's port, and @NEXT@ the one after it.
func NewKafka(tb testing.TB, settings ...string) *Server {
	tb.Helper()

	s := &Server{Port: pgtest.FreePort(tb), tb: tb, script: filepath.Join(pgtest.Root(), "scripts", "kafka.sh"), dir: tb.TempDir()}

	port, err := strconv.Atoi(s.Port)
	if err != nil {
		tb.Fatal(err)
	}

	text := strings.NewReplacer("@PORT@", s.Port, "@NEXT@", strconv.Itoa(port+1)).Replace(strings.Join(settings, "\n") + "\n")
	if err := os.WriteFile(filepath.Join(s.dir, "extra.properties"), []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}

	s.Do("start")
	tb.Cleanup(func() { s.Do("kill") })

	return s
}

// NewRabbitMQ starts a RabbitMQ broker that also listens for TLS on the returned port. On
// that port, it requires client certificates from authority, whose common name is the
// user for SASL EXTERNAL.
func NewRabbitMQ(tb testing.TB, authority *Authority) (s *Server, tlsPort string) {
	tb.Helper()

	s = &Server{Port: pgtest.FreePort(tb), tb: tb, script: filepath.Join(pgtest.Root(), "scripts", "rabbitmq.sh"), dir: tb.TempDir()}
	tlsPort = pgtest.FreePort(tb)
	cert, key := authority.Issue("rabbitmq")

	for name, text := range map[string]string{
		"ca.pem": authority.Certificate, "cert.pem": cert, "key.pem": key, "extra.plugins": "rabbitmq_auth_mechanism_ssl",
		"extra.conf": strings.ReplaceAll(`listeners.ssl.default = `+tlsPort+`
ssl_options.cacertfile = DIR/ca.pem
ssl_options.certfile = DIR/cert.pem
ssl_options.keyfile = DIR/key.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
ssl_cert_login_from = common_name
`, "DIR", s.dir),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // a container may run as another user
			tb.Fatal(err)
		}
	}

	s.Do("start")
	tb.Cleanup(func() { s.Do("kill") })

	return s, tlsPort
}

// Do starts, stops, kills, freezes or thaws the server. The action "ctl" runs
// rabbitmqctl with args.
func (s *Server) Do(action string, args ...string) {
	s.tb.Helper()

	cmd := exec.CommandContext(context.Background(), s.script, append([]string{action, s.dir, s.Port}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.tb.Fatalf("%s %s: %v\n%s", s.script, action, err, out)
	}
}
