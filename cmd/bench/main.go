// Command bench measures throughput and latency of the order pipeline on each
// broker. It compares them with the usual way to write such a service (naive) and
// with the SQL alone (ceiling). Scenarios alternate, so that changes in the speed
// of the machine affect all of them. It prints medians and their spread.
//
// `make bench` starts the servers that it requires.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/mattn/go-isatty"
)

// settings are the values of the flags.
type settings struct {
	orders, naiveOrders int
	rounds              int
	skus                int
	seconds             int
	events              int
	inboxRows           int
	suite               string
	only                string
	jsonFile            string
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "child" {
		exit(child(os.Args[2]))
	}

	var s settings

	flag.IntVar(&s.orders, "orders", 20_000, "orders of a throughput run")
	flag.IntVar(&s.naiveOrders, "naive-orders", 5_000, "orders of a naive run")
	flag.IntVar(&s.rounds, "rounds", 5, "rounds; each runs every scenario once")
	flag.IntVar(&s.skus, "skus", 500, "products, in a uniform run")
	flag.IntVar(&s.seconds, "seconds", 8, "duration of a latency run")
	flag.IntVar(&s.events, "events", 1_000_000, "events in the store of a rebuild; orders of an audit")
	flag.IntVar(&s.inboxRows, "inbox-rows", 10_000_000, "old inbox rows of an aged database")
	flag.StringVar(&s.suite, "suite", "pipeline", "pipeline, aged or audit")
	flag.StringVar(&s.only, "only", "", "only scenarios whose name contains this, separated by commas")
	flag.StringVar(&s.jsonFile, "json", ".local/bench/result.json", "file to write the result to, as JSON")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

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

	all, err := lab.scenarios()
	if err != nil {
		return err
	}

	scenarios := selected(all, s.only)
	results := newResults(scenarios)

	for round := 0; round <= s.rounds; round++ {
		for i, scenario := range scenarios {
			// Round 0 warms up the servers, above all the broker's JVM.
			progress(round, s.rounds, i, len(scenarios), scenario.name)

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

	report := results.report(environment(s))

	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}

	if err := os.WriteFile(s.jsonFile, append(data, '\n'), 0o600); err != nil {
		return err
	}

	report.print(os.Stdout)
	fmt.Printf("\nAll runs: %s\n", s.jsonFile)

	return nil
}

func progress(round, rounds, scenario, scenarios int, name string) {
	label := fmt.Sprintf("round %d of %d", round, rounds)
	if round == 0 {
		label = "warming up"
	}

	if !isatty.IsTerminal(os.Stderr.Fd()) {
		fmt.Fprintf(os.Stderr, "%s: %s\n", label, name)

		return
	}

	fmt.Fprintf(os.Stderr, "\r%-70s", fmt.Sprintf("%s, %d of %d: %s", label, scenario+1, scenarios, name))
}

func selected(all []scenario, only string) []scenario {
	if only == "" {
		return all
	}

	var chosen []scenario

	for _, s := range all {
		for part := range strings.SplitSeq(only, ",") {
			if strings.Contains(s.name, part) {
				chosen = append(chosen, s)

				break
			}
		}
	}

	return chosen
}
