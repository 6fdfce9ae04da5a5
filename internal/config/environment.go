package config

import (
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// envPrefix is the prefix of environment variables that set a key. Two underscores
// separate the parts: MILLRACE_OUTBOX__BATCH_SIZE sets outbox.batch_size.
const (
	envPrefix = "MILLRACE_"
	envDot    = "__"
)

// testPrefix is the prefix of variables that only tests use.
const testPrefix = "MILLRACE_TEST_"

// databaseURL is the variable through which platforms pass the database's address. It
// sets postgres.url unless another variable sets that key.
const databaseURL = "DATABASE_URL"

// serviceLink matches the variables that Kubernetes injects into every pod of a
// namespace for a Service named millrace or millrace-NAME, and that Docker injects for
// a link:
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
// (as of 2025). Some of their names, such as MILLRACE_POSTGRES_PORT, look like keys.
var serviceLink = regexp.MustCompile(
	`^MILLRACE(_.+)?_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)=|` +
		`^MILLRACE(_.*[A-Z0-9])?_PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://|` +
		`^MILLRACE(_.*[A-Z0-9])?_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=`)

// ServiceLinks returns the names of variables that are ignored because Kubernetes or
// Docker injects them for a Service or a link named millrace, or millrace-NAME.
func ServiceLinks() (names []string) {
	for _, variable := range os.Environ() {
		if serviceLink.MatchString(variable) {
			name, _, _ := strings.Cut(variable, "=")
			names = append(names, name)
		}
	}

	slices.Sort(names)

	return names
}

// environment returns the keys that environment variables set, with their values.
// Platforms inject variables of their own, so a variable without a section is ignored
// unless it resembles a key.
func environment() (values map[string]any, err error) {
	var errs []error

	values = map[string]any{}
	keys := map[string]string{}       // by variable
	resembling := map[string]string{} // variables by their names with single underscores

	for _, key := range settable() {
		variable := envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", envDot))
		keys[variable] = key
		resembling[strings.ReplaceAll(variable, envDot, "_")] = variable
	}

	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if value == "" || !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, testPrefix) || serviceLink.MatchString(variable) {
			continue
		}

		if key, ok := keys[name]; ok {
			values[key] = value

			continue
		}

		near := event.Nearest(strings.ReplaceAll(name, envDot, "_"), slices.Sorted(maps.Keys(resembling)))
		if len(near) > 0 || strings.Contains(name, envDot) {
			errs = append(errs, unknown(name, postgres.Column(near, func(flat string) string { return resembling[flat] })))
		}
	}

	if url := os.Getenv(databaseURL); url != "" && values["postgres.url"] == nil && values["postgres.url"+fileSuffix] == nil {
		values["postgres.url"] = url
	}

	return values, errors.Join(errs...)
}
