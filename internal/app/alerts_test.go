package app_test

import (
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/knadh/koanf/parsers/yaml"

	"github.com/millracehq/millrace/internal/engine/event"
)

var metricPattern = regexp.MustCompile(`millrace_[a-z_]+`)

// metricNames returns the names of all metrics in the source.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()

	names := map[string]bool{}
	declared := regexp.MustCompile(`Name: "(millrace_[a-z_]+)"|desc\("([a-z_]+)"`)

	sources := os.DirFS("..")

	err := fs.WalkDir(sources, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}

		source, err := fs.ReadFile(sources, path)
		for _, match := range declared.FindAllStringSubmatch(string(source), -1) {
			names[match[1]], names["millrace_"+match[2]] = true, true
		}

		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	return names
}

// reasonPattern matches a selector of reasons of failed messages.
var reasonPattern = regexp.MustCompile(`millrace_failures_total\{reason=~"([a-z_|]+)"`)

// An alert on a reason that does not exist never fires.
func TestAlertsUseReasonsThatExist(t *testing.T) {
	t.Parallel()

	found := 0

	for _, alert := range alerts(t) {
		expr, _ := alert["expr"].(string)
		for _, match := range reasonPattern.FindAllStringSubmatch(expr, -1) {
			for reason := range strings.SplitSeq(match[1], "|") {
				if found++; !slices.Contains(event.Reasons, event.Reason(reason)) {
					t.Errorf("%s: there is no reason %s", alert["alert"], reason)
				}
			}
		}
	}

	if found == 0 {
		t.Error("no alert selects reasons")
	}
}

func TestAlertsUseMetricsThatExist(t *testing.T) {
	t.Parallel()

	metrics := metricNames(t)

	for _, alert := range alerts(t) {
		name, _ := alert["alert"].(string)
		expr, _ := alert["expr"].(string)
		annotations, _ := alert["annotations"].(map[string]any)

		if name == "" || !metricPattern.MatchString(expr) || annotations["summary"] == nil {
			t.Errorf("incomplete alert %v", alert)
		}

		metricsExist(t, metrics, name, expr)
	}
}

func TestTheDocumentationNamesMetricsAndAlertsThatExist(t *testing.T) {
	t.Parallel()

	page, err := os.ReadFile("../../docs/deploying.md")
	if err != nil {
		t.Fatal(err)
	}

	_, health, _ := strings.Cut(string(page), "## Health")
	health, _, _ = strings.Cut(health, "\n## ")
	metricsExist(t, metricNames(t), "docs/deploying.md", health)

	exists := map[any]bool{}
	for _, alert := range alerts(t) {
		exists[alert["alert"]] = true
	}

	named := regexp.MustCompile("`(Millrace[A-Za-z]+)`").FindAllStringSubmatch(health, -1)
	if len(named) < 10 {
		t.Errorf("docs/deploying.md names %d alerts: the table has moved", len(named))
	}

	for _, match := range named {
		if !exists[match[1]] {
			t.Errorf("docs/deploying.md: there is no alert %s", match[1])
		}
	}
}

// alerts returns the alerting rules.
func alerts(t *testing.T) (rules []map[string]any) {
	t.Helper()

	file, err := os.ReadFile("../../deployments/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}

	parsed, err := yaml.Parser().Unmarshal(file)
	if err != nil {
		t.Fatal(err)
	}

	groups, _ := parsed["groups"].([]any)

	for _, group := range groups {
		g, _ := group.(map[string]any)
		list, _ := g["rules"].([]any)

		for _, rule := range list {
			r, _ := rule.(map[string]any)
			rules = append(rules, r)
		}
	}

	return rules
}

// metricsExist fails the test if a text names a metric that does not exist.
func metricsExist(t *testing.T, metrics map[string]bool, where, text string) {
	t.Helper()

	for _, name := range metricPattern.FindAllString(text, -1) {
		if !metrics[name] {
			t.Errorf("%s: there is no metric %s", where, name)
		}
	}
}
