package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// results collects figures by scenario, in the order of the first round.
type results struct {
	order []string
	runs  map[string][]figures
}

func newResults(scenarios []scenario) *results {
	r := &results{runs: make(map[string][]figures)}
	for _, s := range scenarios {
		r.order = append(r.order, s.name)
	}

	return r
}

func (r *results) add(name string, f figures) { r.runs[name] = append(r.runs[name], f) }

// report is the result, as JSON and as a table.
type report struct {
	Environment map[string]string `json:"environment"`
	Scenarios   []measured        `json:"scenarios"`
}

type measured struct {
	Name    string             `json:"name"`
	Medians map[string]float64 `json:"medians"`
	Runs    []figures          `json:"runs"`
}

func (r *results) report(environment map[string]string) report {
	out := report{Environment: environment}

	for _, name := range r.order {
		m := measured{Name: name, Runs: r.runs[name], Medians: make(map[string]float64)}

		if len(m.Runs) > 0 {
			for figure := range m.Runs[0] {
				m.Medians[figure] = spread(m.Runs, figure)[1]
			}
		}

		out.Scenarios = append(out.Scenarios, m)
	}

	return out
}

// spread returns minimum, median and maximum of a figure.
func spread(runs []figures, name string) [3]float64 {
	values := make([]float64, len(runs))
	for i, f := range runs {
		values[i] = f[name]
	}

	slices.Sort(values)

	return [3]float64{values[0], values[len(values)/2], values[len(values)-1]}
}

func (r report) print(w io.Writer) {
	for _, key := range []string{"machine", "go", "settings", "date"} {
		fmt.Fprintf(w, "%s: %s\n", key, r.Environment[key])
	}

	r.table(w, "Throughput (median, with the slowest and the fastest run)", "orders/s",
		"orders/s", "batch", "CPU ms/order", "service", "postgres", "broker", "WAL KB/order", "RSS MB")
	r.table(w, "Latency from published to completed (median over runs, with spread)", "p50 ms",
		"p50 ms", "p95 ms", "p99 ms", "first tx p50 ms", "RSS MB")
	r.table(w, "Throughput of the other domains, on Kafka", "messages/s",
		"messages/s", "batch", "CPU ms/message", "service", "postgres", "broker", "RSS MB")
	r.table(w, "Rebuilding a projection while messages arrive", "rebuild s", "rebuild s", "events", "events/s", "messages meanwhile")
	r.table(w, "Audit of a healthy database", "audit s", "audit s", "orders", "generated in s")
	r.ratios(w)
}

// table prints the scenarios that have a figure.
func (r report) table(w io.Writer, title, key string, columns ...string) {
	if !slices.ContainsFunc(r.Scenarios, func(m measured) bool { _, ok := m.Medians[key]; return ok }) {
		return
	}

	fmt.Fprintf(w, "\n%s\n\n", title)

	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "scenario\t%s\n", strings.Join(columns, "\t"))

	for _, s := range r.Scenarios {
		if _, ok := s.Medians[key]; !ok {
			continue
		}

		fmt.Fprint(t, s.Name)

		for _, column := range columns {
			fmt.Fprintf(t, "\t%s", cell(s.Runs, column))
		}

		fmt.Fprintln(t)
	}

	_ = t.Flush() // to the terminal
}

func cell(runs []figures, column string) string {
	if _, ok := runs[0][column]; !ok {
		return "-"
	}

	s := spread(runs, column)
	format := "%.0f (%.0f-%.0f)"

	if s[1] < 20 {
		format = "%.1f (%.1f-%.1f)"
	}

	if s[1] < 2 {
		format = "%.2f (%.2f-%.2f)"
	}

	return fmt.Sprintf(format, s[1], s[0], s[2])
}

// ratios compare runs of the same round, which had the same conditions.
func (r report) ratios(w io.Writer) {
	fmt.Fprint(w, "\nRatios of throughput (median of the ratios round by round, with spread)\n\n")

	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)

	for _, pair := range [][2]string{
		{"kafka uniform", "kafka naive"}, {"rabbitmq uniform", "rabbitmq naive"}, {"embedded uniform", "ceiling"},
		{"kafka users", "kafka users naive"}, {"kafka legacy", "kafka legacy naive"}, {"kafka analytics", "kafka analytics naive"},
		{"embedded aged", "embedded empty"}, {"kafka aged", "kafka empty"},
		{"embedded hot", "embedded uniform"}, {"kafka hot", "kafka uniform"}, {"rabbitmq hot", "rabbitmq uniform"},
	} {
		if ratios := r.paired(pair[0], pair[1]); len(ratios) > 0 {
			fmt.Fprintf(t, "%s / %s\t%s\n", pair[0], pair[1], cell(ratios, "ratio"))
		}
	}

	_ = t.Flush() // to the terminal
}

func (r report) paired(a, b string) []figures {
	var first, second []figures

	for _, s := range r.Scenarios {
		switch s.Name {
		case a:
			first = s.Runs
		case b:
			second = s.Runs
		}
	}

	var ratios []figures
	for i := range min(len(first), len(second)) {
		ratios = append(ratios, figures{"ratio": rate(first[i]) / rate(second[i])})
	}

	return ratios
}

// rate returns the throughput of a run in any unit.
func rate(f figures) float64 { return max(f["orders/s"], f["messages/s"]) }

func environment(s settings) map[string]string {
	return map[string]string{
		"machine":  fmt.Sprintf("%d cores, %s", runtime.NumCPU(), cpuModel()),
		"go":       runtime.Version(),
		"settings": fmt.Sprintf("%d orders (naive: %d), %d SKUs, %d rounds, service, Postgres and broker on the same cores", s.orders, s.naiveOrders, s.skus, s.rounds),
		"date":     time.Now().UTC().Format(time.DateOnly),
	}
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}

	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}

	return runtime.GOARCH
}
