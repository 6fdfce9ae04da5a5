package operate

import (
	"regexp"
	"strings"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// remedies says what to do about an error. The first that matches wins.
var remedies = []struct {
	match *regexp.Regexp
	text  string
}{
	{regexp.MustCompile(`SQLSTATE 25006|takes no writes`), "wait for the failover, or correct postgres.url: it may list all hosts; the service continues by itself"},
	{regexp.MustCompile(`SQLSTATE 42501`), "grant the role what docs/deploying.md lists under Two roles"},
	{regexp.MustCompile(`SQLSTATE 42P01|SQLSTATE 42703`), "run `millrace migrate up`"},
	{regexp.MustCompile(`SQLSTATE 53100`), "free disk space on the Postgres server; the service continues by itself"},
	{regexp.MustCompile(`SQLSTATE 53300`), "raise max_connections of the Postgres server, or lower postgres.max_conns"},
	{regexp.MustCompile(`SQLSTATE 28\w{3}`), "correct user and password in postgres.url, or pg_hba.conf"},
	{regexp.MustCompile(`SQLSTATE 3D000`), "create the database, or correct postgres.url"},
	{regexp.MustCompile(`SQLSTATE 57P03`), "wait until the Postgres server has started or recovered; the service continues by itself"},
	{regexp.MustCompile(`x509|tls: |certificate`), "correct the certificate, or the CA file in the configuration"},
	{regexp.MustCompile(`(?i)sasl|authenticat|ACCESS_REFUSED|username or password|not authorized|\b401\b|\b403\b`), "correct user, password or permissions"},
	{regexp.MustCompile(`(?i)message (was|is) too large`), "raise the limit of the topic at the broker, or publish smaller messages"},
	{regexp.MustCompile(`no such host`), "correct the host in the address"},
}

// remedyFor returns what to do about the error of a dependency.
func remedyFor(dependency, why string) string {
	for _, r := range remedies {
		if r.match.MatchString(why) {
			return r.text
		}
	}

	switch dependency {
	case postgres.Dependency:
		return "check that Postgres runs and that postgres.url is right; the service keeps trying"
	case broker.Kafka, broker.RabbitMQ:
		return "check that the broker runs and that broker." + strings.ToLower(dependency) + " is right; the service keeps trying"
	default:
		return "check that it runs and that its address and credentials in the configuration are right; the service keeps trying"
	}
}
