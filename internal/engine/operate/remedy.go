package operate

import (
	"regexp"
	"strings"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// byItself is appended to a remedy if a running service notices that the trouble has
// ended.
const byItself = "; the service then recovers on its own"

// remedies says what to do about an error. The first match wins.
var remedies = []struct {
	match *regexp.Regexp
	text  string
}{
	{regexp.MustCompile(`SQLSTATE 25006|takes no writes`), "wait for the failover, or correct postgres.url: it can list all hosts" + byItself},
	{regexp.MustCompile(`SQLSTATE 42501`), "grant the role the privileges listed under Roles in docs/deploying.md" + byItself},
	{regexp.MustCompile(`SQLSTATE 42P01|SQLSTATE 42703`), "run `millrace migrate up`"},
	{regexp.MustCompile(`SQLSTATE 53100`), "free disk space on the Postgres server" + byItself},
	{regexp.MustCompile(`SQLSTATE 53300`), "raise the Postgres server's max_connections, or lower postgres.max_conns"},
	{regexp.MustCompile(`SQLSTATE 28\w{3}`), "correct the user and password in postgres.url, or pg_hba.conf"},
	{regexp.MustCompile(`SQLSTATE 3D000`), "create the database, or correct postgres.url"},
	{regexp.MustCompile(`SQLSTATE 57P03`), "wait until the Postgres server has started or recovered" + byItself},
	{regexp.MustCompile(`x509|tls: |certificate`), "correct the certificate, or the CA file in the configuration"},
	{
		regexp.MustCompile(`(?i)sasl|authenticat|ACCESS_REFUSED|username or password|not authorized|(?:answered:?|status:?|HTTP|Exception) \(?40[13]\b`),
		"correct the user, password or permissions",
	},
	{regexp.MustCompile(`(?i)message (was|is) too large`), "raise the limit of the topic at the broker, or publish smaller messages"},
	{regexp.MustCompile(`rabbitmq has raised an alarm`), "free memory or disk space on the RabbitMQ server; see `rabbitmq-diagnostics alarms`; the service then recovers on its own"},
	{regexp.MustCompile(`no such host`), "correct the host in the address"},
}

func remedyOf(why string) (text string, known bool) {
	for _, r := range remedies {
		if r.match.MatchString(why) {
			return r.text, true
		}
	}

	return "", false
}

// remedyFor returns what to do about a dependency's error.
func remedyFor(dependency, why string) string {
	if text, known := remedyOf(why); known {
		return text
	}

	switch dependency {
	case postgres.Dependency:
		return "check that Postgres is running and that postgres.url is correct" + byItself
	case broker.Kafka, broker.RabbitMQ:
		return "check that the broker is running and that broker." + strings.ToLower(dependency) + " is correct" + byItself
	default:
		return "check that it is running and that its configured address and credentials are correct" + byItself
	}
}

// disconnected matches connection errors of Postgres.
var disconnected = regexp.MustCompile(`failed to connect|connection re(fused|set)|conn closed|\bEOF\b|i/o timeout|context deadline exceeded|SQLSTATE (08|57P)`)

// remedyForTask returns what to do about an error of background work, or of a statement
// that takes a measurement.
func remedyForTask(why string) string {
	text, known := remedyOf(why)

	switch {
	case known:
		return text
	case strings.HasPrefix(why, health.Silent):
		return "see the other entries and the log; restart the service if it does not recover"
	case disconnected.MatchString(why):
		return remedyFor(postgres.Dependency, why)
	default:
		return "fix what the error reports; see the log for details" + byItself
	}
}
