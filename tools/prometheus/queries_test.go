// Package prometheus tests what is deployed to Prometheus and Grafana. It is a module of
// its own, so that the product does not depend on Prometheus.
package prometheus

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

const root = "../../"

// metric is a row of docs/metrics.md.
type metric struct {
	kind   string
	labels []string
}

// documented returns the metrics of docs/metrics.md, which a test of the service compares
// with a scrape, and those of the Go and process collectors.
func documented(t *testing.T) map[string]metric {
	t.Helper()

	page, err := os.ReadFile(root + "docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}

	metrics := map[string]metric{}
	row := regexp.MustCompile("(?m)^\\| `(millrace_[a-z_]+)` \\| (\\w+) \\| ([^|]*) \\|")

	for _, match := range row.FindAllStringSubmatch(string(page), -1) {
		var names []string
		for _, label := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(match[3], -1) {
			names = append(names, label[1])
		}

		metrics[match[1]] = metric{match[2], names}
	}

	registry := client.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	families, err := registry.Gather()
	if err != nil || len(metrics) < 30 {
		t.Fatalf("docs/metrics.md has %d metrics, %v", len(metrics), err)
	}

	for _, family := range families {
		metrics[family.GetName()] = metric{strings.ToLower(family.GetType().String()), nil}
	}

	return metrics
}

// queries returns all expressions in the rules and dashboards, by location.
func queries(t *testing.T) map[string]string {
	t.Helper()

	found := map[string]string{}
	for _, rule := range rules(t) {
		found["alert "+rule.Alert] = rule.Expr
	}

	dashboards, err := filepath.Glob(root + "deployments/grafana/*.json")
	if err != nil || len(dashboards) == 0 {
		t.Fatalf("no dashboards, %v", err)
	}

	for _, path := range dashboards {
		var dashboard any

		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}

		if err := json.Unmarshal(data, &dashboard); err != nil {
			t.Fatal(err)
		}

		walk(dashboard, filepath.Base(path), found)
	}

	return found
}

// walk collects fields named expr, and the queries of variables.
func walk(value any, where string, found map[string]string) {
	switch value := value.(type) {
	case map[string]any:
		if title, ok := value["title"].(string); ok {
			where += " / " + title
		}

		for key, inner := range value {
			text, isText := inner.(string)

			switch metric, ok := strings.CutPrefix(text, "label_values("); {
			case isText && key == "expr":
				found[where+" "+fmt.Sprint(value["refId"])] = text
			case ok:
				found[where+" "+key], _, _ = strings.Cut(metric, ",")
			default:
				walk(inner, where, found)
			}
		}
	case []any:
		for _, inner := range value {
			walk(inner, where, found)
		}
	}
}

func rules(t *testing.T) (list []rulefmt.Rule) {
	t.Helper()

	groups, errs := rulefmt.ParseFile(root+"deployments/prometheus/alerts.yaml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}

	for _, group := range groups.Groups {
		list = append(list, group.Rules...)
	}

	return list
}

// given are labels that Prometheus adds.
var given = []string{"instance", "job", labels.MetricName}

func TestQueriesNameMetricsAndLabelsThatExist(t *testing.T) {
	t.Parallel()

	metrics, all := documented(t), queries(t)
	if len(all) < 40 {
		t.Errorf("found %d queries only", len(all))
	}

	for where, query := range all {
		query = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(query)

		expression, err := parser.NewParser(parser.Options{}).ParseExpr(query)
		if err != nil {
			t.Errorf("%s: %v", where, err)

			continue
		}

		known := slices.Clone(given)

		parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
			selector, ok := node.(*parser.VectorSelector)
			if !ok {
				return nil
			}

			m, exists := metrics[selector.Name]
			if !exists {
				t.Errorf("%s: there is no metric %q", where, selector.Name)
			}

			known = append(known, m.labels...)

			for _, matcher := range selector.LabelMatchers {
				if !slices.Contains(append(given, m.labels...), matcher.Name) {
					t.Errorf("%s: %s has no label %s", where, selector.Name, matcher.Name)
				}
			}

			return nil
		})

		parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
			if aggregate, ok := node.(*parser.AggregateExpr); ok {
				for _, label := range aggregate.Grouping {
					if !slices.Contains(known, label) {
						t.Errorf("%s: groups by %s, which no metric in it has", where, label)
					}
				}
			}

			return nil
		})
	}
}

// firing returns the alerts that fire in a test.
func firing(t *testing.T) map[string]bool {
	t.Helper()

	data, err := os.ReadFile(root + "deployments/prometheus/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}

	var file struct {
		Tests []struct {
			Rules []struct {
				Alert    string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}

	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}

	fires := map[string]bool{}

	for _, test := range file.Tests {
		for _, rule := range test.Rules {
			if len(rule.Expected) > 0 {
				fires[rule.Alert] = true
			}
		}
	}

	return fires
}

// Each alert has a page that says what to do, and a test in which it fires.
func TestEachAlertHasARunbookAndATest(t *testing.T) {
	t.Parallel()

	fires, pages := firing(t), map[string]bool{}

	paths, err := filepath.Glob(root + "docs/runbooks/Millrace*.md")
	if err != nil {
		t.Fatal(err)
	}

	for _, path := range paths {
		pages[strings.TrimSuffix(filepath.Base(path), ".md")] = true
	}

	for _, rule := range rules(t) {
		if !fires[rule.Alert] {
			t.Errorf("%s: no test in which it fires", rule.Alert)
		}

		if !pages[rule.Alert] || !strings.HasSuffix(rule.Annotations["runbook_url"], "/docs/runbooks/"+rule.Alert+".md") {
			t.Errorf("%s: docs/runbooks/%s.md is missing, or runbook_url is %q", rule.Alert, rule.Alert, rule.Annotations["runbook_url"])
		}

		if rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" || rule.Annotations["action"] == "" {
			t.Errorf("%s: lacks severity, summary or action", rule.Alert)
		}

		delete(pages, rule.Alert)
	}

	if len(pages) > 0 {
		t.Errorf("runbooks without an alert: %v", slices.Sorted(maps.Keys(pages)))
	}
}
