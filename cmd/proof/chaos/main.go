package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/cmd/proof/checker"
	"github.com/millracehq/millrace/cmd/proof/record"
	"github.com/millracehq/millrace/cmd/proof/server"
)

// settings are the flags.
type settings struct {
	options

	brokers, seeds, summary string
	parallel                int
	json                    bool
}

// Main runs one seed or many.
func Main(ctx context.Context, args []string) error {
	var s settings

	flags := flag.NewFlagSet("proof chaos", flag.ContinueOnError)
	flags.StringVar(&s.brokers, "broker", server.Embedded, "embedded, kafka or rabbitmq; several separated by commas")
	flags.StringVar(&s.service, "service", "bin/millrace", "the program to run")
	flags.Uint64Var(&s.seed, "seed", rand.Uint64N(1_000_000), "seed of the load and the faults")
	flags.StringVar(&s.seeds, "seeds", "", "run several seeds, such as 1-30")
	flags.DurationVar(&s.duration, "duration", time.Minute, "how long faults are injected")
	flags.IntVar(&s.replicas, "replicas", 3, "replicas of the service")
	flags.IntVar(&s.rate, "rate", 40, "messages a second")
	flags.IntVar(&s.parallel, "parallel", 1, "how many runs go on at once")
	flags.StringVar(&s.summary, "summary", "", "file into which a table of all runs is written")
	flags.BoolVar(&s.json, "json", false, "print reports as JSON, one a line")

	if err := flags.Parse(args); err != nil {
		return err
	}

	first, last, err := parseSeeds(s)
	if err != nil {
		return err
	}

	var list []options

	for seed := first; seed <= last; seed++ {
		for broker := range strings.SplitSeq(s.brokers, ",") {
			o := s.options
			o.kind, o.seed = broker, seed
			list = append(list, o)
		}
	}

	return s.runAll(ctx, list)
}

func parseSeeds(s settings) (first, last uint64, err error) {
	if s.seeds == "" {
		return s.seed, s.seed, nil
	}

	from, to, several := strings.Cut(s.seeds, "-")
	if !several {
		to = from
	}

	first, err1 := strconv.ParseUint(from, 10, 64)
	last, err2 := strconv.ParseUint(to, 10, 64)

	if errors.Join(err1, err2) != nil || first > last {
		return 0, 0, fmt.Errorf("-seeds is %q, expected a range such as 1-30", s.seeds)
	}

	return first, last, nil
}

// runAll runs all, several at once, and prints the reports as they come.
func (s settings) runAll(ctx context.Context, list []options) error {
	var (
		mu      sync.Mutex
		reports []Report
		work    errgroup.Group
		failed  int
	)

	work.SetLimit(max(1, s.parallel))

	for _, o := range list {
		work.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}

			began := time.Now()
			report, err := Run(ctx, o)

			if err != nil {
				report.Error = err.Error()
			}

			mu.Lock()
			defer mu.Unlock()

			reports = append(reports, report)

			if len(report.Violations) > 0 || err != nil {
				failed++
			}

			s.print(os.Stdout, report, time.Since(began), len(list) > 1)

			return nil
		})
	}

	if err := work.Wait(); err != nil {
		return err
	}

	if s.summary != "" {
		if err := os.WriteFile(s.summary, []byte(summary(reports, s)), 0o644); err != nil { //nolint:gosec // a page of the documentation
			return err
		}
	}

	if failed > 0 {
		return fmt.Errorf("%d of %d runs found violations or failed", failed, len(list))
	}

	return nil
}

func (s settings) print(w io.Writer, r Report, took time.Duration, brief bool) {
	switch {
	case s.json:
		_ = json.NewEncoder(w).Encode(r) // to the terminal or a pipe
	case brief:
		result := "ok"
		if r.Error != "" {
			result = "ERROR " + r.Error
		} else if len(r.Violations) > 0 {
			result = fmt.Sprintf("FAIL  %d violations, %s", len(r.Violations), r.Dir)
		}

		fmt.Fprintf(w, "%-8s seed %-6d %5.0fs  %5d messages, %3d faults, rest after %3.0fs  %s\n", r.Broker, r.Seed, took.Seconds(), total(r.Messages), total(r.Faults), r.Rest, result)
		checker.Print(w, r.Violations)
	default:
		printReport(w, r)
	}
}

func printReport(w io.Writer, r Report) {
	fmt.Fprintf(w, "%s, seed %d, %d replicas: %d messages, %d faults; at rest %.0f s after the last one\n", r.Broker, r.Seed, r.Replicas, total(r.Messages), total(r.Faults), r.Rest)

	for _, part := range []struct {
		title string
		count map[string]int
	}{{"messages", r.Messages}, {"faults survived", r.Faults}, {"also", r.Counts}} {
		fmt.Fprintf(w, "\n%s\n", part.title)

		for _, name := range slices.Sorted(maps.Keys(part.count)) {
			fmt.Fprintf(w, "%7d  %s\n", part.count[name], name)
		}
	}

	fmt.Fprintln(w)
	checker.Print(w, r.Violations)

	if r.Error == "" && len(r.Violations) == 0 {
		fmt.Fprintln(w, "no violation")
	} else {
		fmt.Fprintf(w, "logs, data and record.json are in %s\n", r.Dir)
	}
}

func total(count map[string]int) (n int) {
	for _, c := range count {
		n += c
	}

	return n
}

// Check checks a database with the record of a run.
func Check(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("proof check", flag.ContinueOnError)
	file := flags.String("record", "", "record.json of a run")
	address := flags.String("database", os.Getenv("DATABASE_URL"), "URL of the database, at rest")

	if err := flags.Parse(args); err != nil {
		return err
	}

	if *file == "" || *address == "" {
		return errors.New("-record and -database are needed; a run that fails says where they are")
	}

	rec, err := record.Load(*file)
	if err != nil {
		return err
	}

	db, err := pgxpool.New(ctx, *address)
	if err != nil {
		return err
	}
	defer db.Close()

	found, err := checker.Check(ctx, db, rec)
	if err != nil {
		return err
	}

	checker.Print(os.Stdout, found)

	if len(found) > 0 {
		return fmt.Errorf("%d violations", len(found))
	}

	fmt.Printf("no violation in %d messages\n", len(rec.Messages))

	return nil
}
