// Package crash kills the service at every moment at which its death could lose, repeat or
// reorder something. Each trial sends a load to a real process that is built with the tag
// crashpoints, replaces the process once it has killed itself, waits until nothing is left
// to do, and compares the end with the load.
package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

// kinds are all brokers.
var kinds = []string{server.Embedded, server.Kafka, server.RabbitMQ}

// short are the most important points, for `make test`.
var short = []crashpoint.Point{
	crashpoint.Committing, crashpoint.Committed, crashpoint.EffectPerformed, crashpoint.RelayPublished, crashpoint.RelayConfirmed,
	crashpoint.FailedKept, crashpoint.FailedApplied, crashpoint.CancelDecided, crashpoint.DrainBegan,
}

// firsts and seconds make the pairs: the process that replaces the one that died at the
// first dies at the second.
var (
	firsts = []crashpoint.Point{
		crashpoint.Committed, crashpoint.Acking, crashpoint.EffectPerformed, crashpoint.RelayPublished, crashpoint.RelayConfirmed,
		crashpoint.FailedKept, crashpoint.FailedApplied, crashpoint.CancelDecided, crashpoint.DrainBegan,
	}
	seconds = []crashpoint.Point{crashpoint.Received, crashpoint.Committed, crashpoint.RelayPublished}
)

// options are the flags.
type options struct {
	brokers, points, report string
	pairs, short            bool
	parallel                int
}

// Command runs trials of all points on all brokers.
func Command(ctx context.Context, args []string) error {
	var o options

	flags := flag.NewFlagSet("proof crash", flag.ContinueOnError)
	flags.StringVar(&o.brokers, "broker", strings.Join(kinds, ","), "brokers, separated by commas")
	flags.StringVar(&o.points, "point", "", "crash points, separated by commas (default all)")
	flags.BoolVar(&o.pairs, "pairs", false, "also kill the process that recovers from the most important points")
	flags.BoolVar(&o.short, "short", false, "only the most important points")
	flags.IntVar(&o.parallel, "parallel", 4, "trials at a time")
	flags.StringVar(&o.report, "report", "", "write the results to this file, as Markdown")

	if err := flags.Parse(args); err != nil {
		return err
	}

	brokers := strings.Split(o.brokers, ",")
	for _, kind := range brokers {
		if !slices.Contains(kinds, kind) {
			return fmt.Errorf("-broker: is %q, expected %s", kind, strings.Join(kinds, ", "))
		}
	}

	trials, err := o.trials(brokers)
	if err != nil {
		return err
	}

	return o.run(ctx, brokers, trials)
}

// trials returns the trials that the flags select.
func (o options) trials(brokers []string) (list []Trial, err error) {
	var selected []crashpoint.Point

	for _, d := range crashpoint.Declared {
		if o.short && !slices.Contains(short, d.Point) {
			continue
		}

		if o.points == "" || slices.Contains(strings.Split(o.points, ","), string(d.Point)) {
			selected = append(selected, d.Point)
		}
	}

	if o.points != "" && len(selected) != len(strings.Split(o.points, ",")) {
		return nil, fmt.Errorf("-point: is %q, expected names in package crashpoint, such as %s", o.points, crashpoint.RelayConfirmed)
	}

	for _, kind := range brokers {
		for _, p := range selected {
			if applies(p, kind) {
				list = append(list, Trial{Broker: kind, Points: []crashpoint.Point{p}})
			}
		}

		if o.pairs {
			list = append(list, pairsOn(kind)...)
		}
	}

	return list, nil
}

func pairsOn(kind string) (list []Trial) {
	after := seconds
	if kind == server.Kafka {
		after = seconds[:1] // it takes Kafka ten seconds to notice each death
	}

	for _, first := range firsts {
		for _, second := range after {
			list = append(list, Trial{Broker: kind, Points: []crashpoint.Point{first, second}})
		}
	}

	return list
}

// applies reports whether messages on a broker pass a point.
func applies(p crashpoint.Point, kind string) bool {
	switch {
	case strings.HasPrefix(string(p), "window."):
		return kind != server.Embedded
	case strings.HasPrefix(string(p), "rabbitmq."):
		return kind == server.RabbitMQ
	default:
		return true
	}
}

// Build builds the service with crash points.
func Build(ctx context.Context, program string, flags ...string) error {
	root, err := server.Root()
	if err != nil {
		return err
	}

	// Without the tables for debuggers, it is linked in half the time.
	args := append([]string{"build", "-tags", "crashpoints,grpcnotrace", "-ldflags", "-s -w", "-o", program}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/millrace")...)
	cmd.Dir = root

	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the service: %w: %s", err, out)
	}

	return nil
}

func (o options) run(ctx context.Context, brokers []string, trials []Trial) (err error) {
	dir, err := server.NewDir()
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	program := filepath.Join(dir, "millrace")
	if err := Build(ctx, program); err != nil {
		return err
	}

	lab, err := NewLab(ctx, program)
	if lab != nil {
		defer func() { err = errors.Join(err, lab.Close(err != nil)) }()
	}

	if err != nil {
		return err
	}

	began := time.Now()

	var group errgroup.Group

	group.SetLimit(o.parallel)

	for i := range trials {
		group.Go(func() error {
			t, err := lab.Run(ctx, program, trials[i])
			if err == nil {
				err = t.Verdict()
			}

			if trials[i] = t; err != nil {
				trials[i].Wrong = append(trials[i].Wrong, err.Error())
			}

			say(t, err)

			return ctx.Err()
		})
	}

	if err := group.Wait(); err != nil {
		return err
	}

	return o.conclude(brokers, trials, time.Since(began), lab.Dir())
}

// Verdict returns an error that says what is wrong, or that a point was not reached.
func (t Trial) Verdict() error {
	switch {
	case len(t.Wrong) > 0:
		return errors.New(join(t.Wrong))
	case t.Reached < len(t.Points):
		return fmt.Errorf("no process reached %s", t.Points[t.Reached])
	default:
		return nil
	}
}

func say(t Trial, err error) {
	if err != nil {
		fmt.Printf("FAIL  %-9s %-45s %5.1fs  %v\n", t.Broker, t.Name(), t.Took.Seconds(), err)
	} else {
		fmt.Printf("ok    %-9s %-45s %5.1fs\n", t.Broker, t.Name(), t.Took.Seconds())
	}
}

// conclude prints the totals and writes the report.
func (o options) conclude(brokers []string, trials []Trial, took time.Duration, logs string) error {
	failed, messages := 0, 0

	for _, t := range trials {
		messages += t.Messages

		if len(t.Wrong) > 0 {
			failed++
		}
	}

	fmt.Printf("%d trials in %s, the fates of %d messages checked, %d failed\n", len(trials), took.Round(time.Second), messages, failed)

	if o.report != "" {
		if err := os.WriteFile(filepath.Clean(o.report), []byte(report(brokers, trials)), 0o600); err != nil {
			return err
		}
	}

	if failed > 0 {
		return fmt.Errorf("%d of %d trials failed; logs are in %s", failed, len(trials), logs)
	}

	return nil
}
