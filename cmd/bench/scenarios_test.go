package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func names() []string {
	lab := &lab{settings: settings{orders: 1000, naiveOrders: 500, skus: 10}}

	var all []string
	for _, s := range lab.scenarios() {
		all = append(all, s.name)
	}

	return all
}

func TestEachScenarioHasASection(t *testing.T) {
	t.Parallel()

	for _, name := range names() {
		if !slices.ContainsFunc(sections(), func(s section) bool { return strings.HasPrefix(name, s.name+"/") }) {
			t.Errorf("the report has no section for %s", name)
		}
	}
}

func TestRatiosCompareScenarios(t *testing.T) {
	t.Parallel()

	for _, r := range ratios() {
		for _, p := range []point{r.over, r.baseline} {
			if !slices.Contains(names(), p.scenario) {
				t.Errorf("%q compares %q, which is no scenario", r.name, p.scenario)
			}
		}
	}
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	t.Parallel()

	runs := map[string][]figures{
		"throughput/kafka":          {{perSecond: 100}, {perSecond: 300}, {perSecond: 50}},
		"throughput/kafka naive":    {{perSecond: 50}, {perSecond: 100}},
		"throughput/embedded":       {{perSecond: 0}},
		"throughput/rabbitmq":       {{perSecond: 10}},
		"throughput/rabbitmq naive": {},
	}

	got := rate("", "throughput/kafka", "throughput/kafka naive").of(runs)
	if len(got) != 2 || got[0]["ratio"] != 2 || got[1]["ratio"] != 3 {
		t.Errorf("got %v, expected 2 and 3", got)
	}

	if got := rate("", "throughput/rabbitmq", "throughput/embedded").of(runs); len(got) != 0 {
		t.Errorf("got %v for a baseline of 0", got)
	}
}

func TestReportIsOfTheScenariosThatRan(t *testing.T) {
	t.Parallel()

	r := newResults([]scenario{{name: "throughput/kafka"}, {name: "throughput/embedded"}, {name: "idle/kafka"}})
	r.add("throughput/kafka", figures{perSecond: 1000})
	r.add("throughput/kafka", figures{perSecond: 3000})
	r.add("throughput/kafka", figures{perSecond: 2000})
	r.add("throughput/embedded", figures{perSecond: 1000})

	var out strings.Builder
	r.report("2 cores", settings{}).print(&out)

	for _, expected := range []string{"| Kafka to embedded | 1.00 |", "## Throughput", "| kafka | 2000 (1000-3000) | - |"} {
		if !strings.Contains(out.String(), expected) {
			t.Errorf("the report lacks %q:\n%s", expected, out.String())
		}
	}

	if strings.Contains(out.String(), "## Idle") {
		t.Error("the report has a section of a scenario that did not run")
	}
}

func TestAMachineIsSlowWhenWorkTakesThreeTimesAsLongAsUsual(t *testing.T) {
	t.Parallel()

	took := slices.Repeat([]time.Duration{300 * time.Microsecond}, 97)
	took = append(took, 800*time.Microsecond, 901*time.Microsecond, 4*time.Millisecond)

	if got := slowShare(took); got != 0.02 {
		t.Errorf("got %v, expected the two of a hundred pieces that took more than 0.9 ms", got)
	}
}

func TestOnlySelectsScenarios(t *testing.T) {
	t.Parallel()

	lab := &lab{}

	for only, expected := range map[string]int{"^throughput/kafka$": 1, "^latency/": 9, "steady": 3, "^tracing/": 6} {
		if chosen, err := selected(lab.scenarios(), settings{only: only}); err != nil || len(chosen) != expected {
			t.Errorf("%s selects %d scenarios (%v), expected %d", only, len(chosen), err, expected)
		}
	}

	if _, err := selected(lab.scenarios(), settings{only: "kafak"}); err == nil || !strings.Contains(err.Error(), "throughput/kafka") {
		t.Errorf("the error is %v, expected the names", err)
	}
}

func TestDocumentHasTheSectionsOfTheReport(t *testing.T) {
	t.Parallel()

	document, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}

	var found, expected []string

	for line := range strings.Lines(string(document)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			found = append(found, strings.TrimSpace(title))
		}
	}

	expected = append(expected, "Ratios")
	for _, s := range sections() {
		expected = append(expected, s.title)
	}

	expected = append(expected, "Console") // make console-budget prints it

	if !slices.Equal(found, expected) {
		t.Errorf("docs/benchmarks.md has the sections %q, the report %q", found, expected)
	}
}
