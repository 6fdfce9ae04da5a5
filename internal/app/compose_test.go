package app_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/knadh/koanf/parsers/yaml"

	"github.com/millracehq/millrace/internal/config"
)

// parsed returns the content of a YAML file in deployments.
func parsed(t *testing.T, name string) map[string]any {
	t.Helper()

	text, err := os.ReadFile("../../deployments/" + name)
	if err != nil {
		t.Fatal(err)
	}

	content, err := yaml.Parser().Unmarshal(text)
	if err != nil {
		t.Fatal(err)
	}

	return content
}

// at returns the value at a path of keys, or nil.
func at(value any, path ...string) any {
	for _, key := range path {
		object, _ := value.(map[string]any)
		value = object[key]
	}

	return value
}

// The service starts once its dependencies answer, with a valid configuration.
func TestTheComposeFileStartsEachServiceWhenItsDependenciesAnswer(t *testing.T) {
	services, _ := parsed(t, "compose.yaml")["services"].(map[string]any)
	checked := 0

	for name, service := range services {
		if test, _ := at(service, "healthcheck", "test").([]any); len(test) < 2 || test[0] != "CMD" {
			t.Errorf("%s has no health check: %v", name, test)
		}

		dependencies, _ := at(service, "depends_on").(map[string]any)
		for dependency := range dependencies {
			if services[dependency] == nil || at(dependencies, dependency, "condition") != "service_healthy" {
				t.Errorf("%s does not wait until %s is healthy", name, dependency)
			}
		}

		if !strings.HasPrefix(name, "millrace-") {
			continue
		}

		checked++

		t.Run(name, func(t *testing.T) {
			variables, _ := at(service, "environment").(map[string]any)
			for variable, value := range variables {
				t.Setenv(variable, fmt.Sprint(value))
			}

			command, _ := at(service, "command").([]any)
			file, _ := strings.CutPrefix(fmt.Sprint(command[len(command)-1]), "/")

			cfg, err := config.Load("../../"+file, nil)
			if err == nil {
				err = cfg.Validate()
			}

			if broker := strings.TrimPrefix(name, "millrace-"); err != nil || cfg.Broker.Kind != broker || dependencies["postgres"] == nil || dependencies[broker] == nil {
				t.Errorf("broker %s, depends on %v, %v", cfg.Broker.Kind, dependencies, err)
			}
		})
	}

	if checked != 2 {
		t.Errorf("%d services run Millrace, expected 2", checked)
	}
}

// Prometheus finds the compose file's services on the port that the image listens on, and
// loads the alerts.
func TestPrometheusScrapesTheServicesOfTheComposeFile(t *testing.T) {
	t.Parallel()

	services, _ := parsed(t, "compose.yaml")["services"].(map[string]any)
	prometheus := parsed(t, "prometheus/prometheus.yaml")
	jobs, _ := prometheus["scrape_configs"].([]any)
	found, _ := at(jobs[0], "dns_sd_configs").([]any)
	names, _ := at(found[0], "names").([]any)

	for name := range services {
		if strings.HasPrefix(name, "millrace-") != slices.Contains(names, any(name)) {
			t.Errorf("%s: scraped are %v", name, names)
		}
	}

	dockerfile, err := os.ReadFile("../../deployments/Dockerfile")
	if port := fmt.Sprint(at(found[0], "port")); err != nil || !strings.Contains(string(dockerfile), "MILLRACE_HEALTH__ADDR=0.0.0.0:"+port+"\n") {
		t.Errorf("port %s is not that of the image, %v", port, err)
	}

	rules, _ := prometheus["rule_files"].([]any)
	if len(rules) != 1 || parsed(t, "prometheus/"+fmt.Sprint(rules[0]))["groups"] == nil {
		t.Errorf("the rules are %v", rules)
	}

	if at(jobs[0], "scrape_native_histograms") != true {
		t.Error("native histograms are not scraped")
	}
}
