package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Figures of a run.
const (
	perSecond        = "per s"
	batchSize        = "batch"
	cpuTotal         = "CPU ms"
	cpuService       = "CPU ms service"
	cpuPostgres      = "CPU ms Postgres"
	cpuBroker        = "CPU ms broker"
	walKB            = "WAL KB"
	rss              = "RSS MB"
	peakRSS          = "peak RSS MB"
	p50              = "p50 ms"
	p95              = "p95 ms"
	p99              = "p99 ms"
	p50Created       = "p50 ms to the first commit"
	rows             = "rows"
	rebuildSeconds   = "rebuild s"
	meanwhile        = "messages meanwhile"
	auditSeconds     = "audit s"
	otlpKB           = "OTLP KB"
	generatedSeconds = "generated in s"
	slowPercent      = "slow %"
)

// section is a part of the report. It contains the scenarios whose names begin with its
// own, and corresponds to a section of docs/benchmarks.md.
type section struct {
	name, title, unit string
	columns           []string
}

func sections() []section {
	costs := []string{perSecond, batchSize, cpuTotal, cpuService, cpuPostgres, cpuBroker, walKB, peakRSS}

	steady := []string{perSecond, cpuTotal}
	for _, slice := range []int{0, 1, steadySlices / 2, steadySlices - 1} {
		steady = append(steady, rateIn(slice), rssIn(slice))
	}

	return []section{
		{"throughput", "Throughput", "order", costs},
		{"keys", "One partition, one key, one product", "message", costs},
		{"domains", "Other domains on Kafka", "message", costs},
		{"latency", "Latency from published to completed", "order", []string{perSecond, p50, p95, p99, p50Created, cpuTotal, peakRSS}},
		{"idle", "Idle", "second", []string{rss, cpuService, cpuPostgres, cpuBroker}},
		{"steady", "Steady full load", "order", append(steady, peakRSS)},
		{"replicas", "Replicas", "order", costs},
		{"tracing", "Cost of tracing", "order", append(slices.Clone(costs), otlpKB)},
		{"aged", "An old database", "order", costs},
		{"rebuild", "Rebuilding a projection while messages arrive", "event", []string{rebuildSeconds, rows, perSecond, meanwhile}},
		{"audit", "Audit", "order", []string{auditSeconds, rows, generatedSeconds}},
	}
}

// results collects figures by scenario.
type results struct {
	scenarios []scenario
	runs      map[string][]figures
}

func newResults(scenarios []scenario) *results {
	return &results{scenarios: scenarios, runs: make(map[string][]figures)}
}

func (r *results) add(name string, f figures) { r.runs[name] = append(r.runs[name], f) }

// report is the result, as JSON and as Markdown.
type report struct {
	Machine   string     `json:"machine"`
	Go        string     `json:"go"`
	Settings  string     `json:"settings"`
	Date      string     `json:"date"`
	Scenarios []measured `json:"scenarios"`
	Ratios    []measured `json:"ratios"`
}

// measured is a scenario, or a ratio, whose only figure is "ratio".
type measured struct {
	Name    string             `json:"name"`
	Medians map[string]float64 `json:"medians"`
	Runs    []figures          `json:"runs"`
}

func (r *results) report(machine string, s settings) report {
	out := report{
		Machine: machine,
		Go:      runtime.Version(),
		Settings: fmt.Sprintf("%d orders or messages (naive, FastStream and one key: %d), %d products, %d rounds; service, Postgres and broker on the same cores",
			s.orders, s.naiveOrders, s.skus, s.rounds),
		Date: time.Now().UTC().Format(time.DateOnly),
	}

	for _, s := range r.scenarios {
		if runs := r.runs[s.name]; len(runs) > 0 {
			out.Scenarios = append(out.Scenarios, newMeasured(s.name, runs))
		}
	}

	for _, ratio := range ratios() {
		if runs := ratio.of(r.runs); len(runs) > 0 {
			out.Ratios = append(out.Ratios, newMeasured(ratio.name, runs))
		}
	}

	return out
}

func newMeasured(name string, runs []figures) measured {
	m := measured{Name: name, Runs: runs, Medians: make(map[string]float64)}
	for figure := range runs[0] {
		m.Medians[figure] = spread(runs, figure)[1]
	}

	return m
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

func (r report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}

	fmt.Fprintf(os.Stderr, "\nAll runs: %s\n", path)

	return os.WriteFile(path, append(data, '\n'), 0o600)
}

// print writes Markdown.
func (r report) print(w io.Writer) {
	fmt.Fprintf(w, "%s; %s; %s; %s. Median, with minimum and maximum.\n", r.Machine, r.Go, r.Settings, r.Date)

	if len(r.Ratios) > 0 {
		fmt.Fprint(w, "\n## Ratios\n\n| of the same round | |\n|---|---|\n")

		for _, m := range r.Ratios {
			fmt.Fprintf(w, "| %s | %s |\n", m.Name, cell(m.Runs, "ratio"))
		}
	}

	for _, s := range sections() {
		r.table(w, s)
	}
}

// table prints the scenarios of a section.
func (r report) table(w io.Writer, s section) {
	var found []measured

	for _, m := range r.Scenarios {
		if strings.HasPrefix(m.Name, s.name+"/") {
			found = append(found, m)
		}
	}

	if len(found) == 0 {
		return
	}

	fmt.Fprintf(w, "\n## %s\n\n|", s.title)

	for _, column := range s.columns {
		fmt.Fprintf(w, " | %s", s.heading(column))
	}

	fmt.Fprintf(w, " |\n|---%s|\n", strings.Repeat("|---", len(s.columns)))

	for _, m := range found {
		fmt.Fprintf(w, "| %s", strings.TrimPrefix(m.Name, s.name+"/"))

		for _, column := range s.columns {
			fmt.Fprintf(w, " | %s", cell(m.Runs, column))
		}

		fmt.Fprintln(w, " |")
	}
}

// heading returns a figure's heading with its unit.
func (s section) heading(figure string) string {
	switch figure {
	case perSecond:
		return s.unit + "s/s"
	case cpuTotal, walKB:
		return figure + "/" + s.unit
	case cpuService, cpuPostgres, cpuBroker:
		return strings.Replace(figure, "ms", "ms/"+s.unit, 1)
	default:
		return figure
	}
}

func cell(runs []figures, column string) string {
	if _, ok := runs[0][column]; !ok {
		return "-"
	}

	s := spread(runs, column)
	format := "%.0f"

	switch {
	case s[1] < 10:
		format = "%.2f"
	case s[1] < 100:
		format = "%.1f"
	}

	if len(runs) > 1 {
		format = fmt.Sprintf("%[1]s (%[1]s-%[1]s)", format)

		return fmt.Sprintf(format, s[1], s[0], s[2])
	}

	return fmt.Sprintf(format, s[1])
}
