// Command bench measures the throughput, latency and memory of the service on each
// broker. It compares them with the usual way to write such a service in Go (naive) and
// in Python (FastStream), and with the SQL alone (ceiling). Scenarios alternate, so that
// changes in the speed of the machine affect all of them. It prints medians and their
// spread as Markdown, in the sections of docs/benchmarks.md.
//
// `make bench` starts the servers that it requires.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
)

// settings are the values of the flags.
type settings struct {
	orders, naiveOrders int
	rounds              int
	skus                int
	seconds             int
	steady              time.Duration
	endure              time.Duration
	broker              string
	events              int
	inboxRows           int
	full                bool
	only                string
	jsonFile            string
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "child" {
		exit(child(os.Args[2]))
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if len(os.Args) == 2 && os.Args[1] == "console" {
		exit(measureConsole(ctx))
	}

	var s settings

	flag.IntVar(&s.orders, "orders", 20_000, "messages of a throughput run")
	flag.IntVar(&s.naiveOrders, "naive-orders", 5_000, "messages of a run that applies one at a time")
	flag.IntVar(&s.rounds, "rounds", 3, "rounds; each runs every scenario once")
	flag.IntVar(&s.skus, "skus", 500, "products")
	flag.IntVar(&s.seconds, "seconds", 15, "duration of a latency run")
	flag.DurationVar(&s.steady, "steady", 10*time.Minute, "duration of a run at steady full load")
	flag.DurationVar(&s.endure, "endure", 0, "run only at 70 % of the capacity for this time, then at twice the capacity, and fail if anything grows")
	flag.StringVar(&s.broker, "broker", "embedded", "broker of -endure")
	flag.IntVar(&s.events, "events", 1_000_000, "events in the store for a rebuild; orders for an audit")
	flag.IntVar(&s.inboxRows, "inbox-rows", 10_000_000, "old inbox rows of an aged database")
	flag.BoolVar(&s.full, "full", false, "run all scenarios, not only the main ones")
	flag.StringVar(&s.only, "only", "", "run only scenarios whose names match this regular expression")
	flag.StringVar(&s.jsonFile, "json", ".local/bench/result.json", "file to write all runs and ratios to")
	flag.Parse()

	exit(run(ctx, s))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}

	os.Exit(0)
}

func run(ctx context.Context, s settings) error {
	lab, err := newLab(ctx, s)
	if err != nil {
		return err
	}
	defer lab.close()

	if s.endure > 0 {
		return lab.endure(ctx, s.broker, s.endure, strings.TrimSuffix(s.jsonFile, "result.json")+"endure")
	}

	chosen, err := selected(lab.scenarios(), s)
	if err != nil {
		return err
	}

	// Ask now: an error after the rounds would lose them.
	postgres, err := lab.build(ctx)
	if err != nil {
		return err
	}

	results := newResults(chosen)

	var slow []figures

	// Round 0 warms up the servers, especially the broker's JVM.
	for round := 0; round <= s.rounds; round++ {
		if round > 0 {
			slow = append(slow, idleMachine())
		}

		for i, scenario := range chosen {
			if scenario.once && round != 1 {
				continue
			}

			progress(round, s.rounds, i, len(chosen), scenario.name)

			figures, err := scenario.run(ctx, round == 0)
			if err != nil {
				return fmt.Errorf("%s: %w", scenario.name, err)
			}

			if round > 0 {
				results.add(scenario.name, figures)
			}
		}
	}

	if isatty.IsTerminal(os.Stderr.Fd()) {
		fmt.Fprintf(os.Stderr, "\r%-70s\r", "")
	}

	report := results.report(machine(slow, postgres), s)
	report.print(os.Stdout)

	return report.write(s.jsonFile)
}

func progress(round, rounds, scenario, scenarios int, name string) {
	label := fmt.Sprintf("round %d of %d, %d of %d: %s", round, rounds, scenario+1, scenarios, name)
	if round == 0 {
		label = fmt.Sprintf("warming up, %d of %d: %s", scenario+1, scenarios, name)
	}

	if isatty.IsTerminal(os.Stderr.Fd()) {
		fmt.Fprintf(os.Stderr, "\r%-70s", label)
	} else {
		fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), label)
	}
}

// selected returns the scenarios that -only matches. Without -only, it returns the main
// scenarios, or all with -full.
func selected(all []scenario, s settings) ([]scenario, error) {
	only, err := regexp.Compile(s.only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}

	var (
		chosen []scenario
		names  []string
	)

	for _, scenario := range all {
		names = append(names, scenario.name)

		if only.MatchString(scenario.name) && (s.only != "" || s.full || scenario.main) {
			chosen = append(chosen, scenario)
		}
	}

	if len(chosen) == 0 {
		return nil, fmt.Errorf("-only: no scenario matches %s; the scenarios are\n  %s", s.only, strings.Join(names, "\n  "))
	}

	return chosen, nil
}
