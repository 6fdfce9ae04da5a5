package app_test

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/knadh/koanf/parsers/yaml"
)

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

func TestAlertsAndDocumentationUseMetricsAndAlertsThatExist(t *testing.T) {
	t.Parallel()

	metrics := metricNames(t)
	metric := regexp.MustCompile(`millrace_[a-z_]+`)

	check := func(where, text string) {
		t.Helper()

		for _, name := range metric.FindAllString(text, -1) {
			if !metrics[name] {
				t.Errorf("%s: there is no metric %s", where, name)
			}
		}
	}

	file, err := os.ReadFile("../../deployments/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}

	parsed, err := yaml.Parser().Unmarshal(file)
	if err != nil {
		t.Fatal(err)
	}

	alerts := map[string]bool{}
	groups, _ := parsed["groups"].([]any)

	for _, group := range groups {
		g, _ := group.(map[string]any)
		rules, _ := g["rules"].([]any)

		for _, rule := range rules {
			r, _ := rule.(map[string]any)
			name, _ := r["alert"].(string)
			expr, _ := r["expr"].(string)
			annotations, _ := r["annotations"].(map[string]any)
			alerts[name] = true

			if name == "" || !metric.MatchString(expr) || annotations["summary"] == nil {
				t.Errorf("incomplete alert %v", r)
			}

			check(name, expr)
		}
	}

	page, err := os.ReadFile("../../docs/deploying.md")
	if err != nil {
		t.Fatal(err)
	}

	_, health, _ := strings.Cut(string(page), "## Health")
	health, _, _ = strings.Cut(health, "\n## ")
	check("docs/deploying.md", health)

	named := regexp.MustCompile("`(Millrace[A-Za-z]+)`").FindAllStringSubmatch(health, -1)
	if len(named) < 10 {
		t.Errorf("docs/deploying.md names %d alerts: the table has moved", len(named))
	}

	for _, match := range named {
		if !alerts[match[1]] {
			t.Errorf("docs/deploying.md: there is no alert %s", match[1])
		}
	}
}
