package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

const (
	// endureShare is the share of the measured capacity that a service endures.
	endureShare = 0.7
	// samples is the number of samples of an endurance run.
	samples = 60
	// tolerated is how much a figure may grow during the run, as a share of its median.
	tolerated = 0.1
	// small is the size in KB up to which the size of a table does not matter.
	small = 1024
	// doneOrders is the number of orders so far.
	doneOrders = "orders"
)

// kept are the tables that keep what was done. They must not grow per order.
var kept = []string{"orders", "events", "inbox", "payments", "published_messages"}

// perOrder replaces the sizes of tables that keep what was done by what each order has
// added to them since the first sample.
func perOrder(list []sample) []sample {
	first := list[0].values

	for _, s := range list[1:] {
		for _, table := range kept {
			added := s.values[table+" KB"] - first[table+" KB"]
			s.values[table+" KB per 1000 orders"] = 1000 * added / max(1, s.values[doneOrders]-first[doneOrders])
			delete(s.values, table+" KB")
		}

		delete(s.values, doneOrders)
	}

	return list[1:]
}

// sample has the figures of a moment.
type sample struct {
	at     time.Duration
	values figures
}

// endure runs the service for a time at a share of its capacity, and then at twice its
// capacity. It returns an error if anything grows that should not, or if the service does
// not recover.
func (l *lab) endure(ctx context.Context, kind string, lasts time.Duration, file string) error {
	load := orders(l.skus)

	s, from, err := l.serving(ctx, kind, load)
	if err != nil {
		return err
	}
	defer s.close()
	defer from.close()

	capacity, _, err := s.capacity(ctx, from, load, min(lasts/5, 30*time.Second))
	if err != nil {
		return err
	}

	rate := max(1, int(capacity*endureShare))
	fmt.Printf("capacity: %.0f orders/s on %s; %s at %d orders/s\n\n", capacity, kind, lasts, rate)

	steady, err := s.sampled(ctx, from, rate, lasts)
	if err != nil {
		return err
	}

	if len(steady) < 2 {
		return errors.New("it did not run for long enough to tell: set a longer time")
	}

	steady = perOrder(steady)
	growing := judge(os.Stdout, steady)

	overload, err := s.sampled(ctx, from, int(2*capacity), lasts/5)
	if err != nil {
		return err
	}

	recovered, err := s.recovers(ctx)
	if err != nil {
		return err
	}

	text := fmt.Sprintf("%s at %d orders/s: %s Recovered by itself after %s.\n",
		lasts/5, int(2*capacity), compared(steady, overload), recovered.Round(100*time.Millisecond))
	fmt.Print("\n" + text)

	if grew := slices.Max(column(overload, rss)) / median(column(steady, rss)); grew > 2 {
		growing = append(growing, fmt.Sprintf("%s under overload: %.1f times", rss, grew))
	}

	if err := writeEndured(file, capacity, rate, steady, text); err != nil {
		return err
	}

	if len(growing) > 0 {
		return errors.New("grows: " + strings.Join(growing, "; "))
	}

	return nil
}

// compared says in a sentence how memory and latency under overload compare with those
// before it.
func compared(steady, overload []sample) string {
	return fmt.Sprintf("the memory has a median of %.0f MB, before that %.0f MB; the latency (p95) rises to %.0f ms, before that %.0f ms.",
		median(column(overload, rss)), median(column(steady, rss)), slices.Max(column(overload, p95)), median(column(steady, p95)))
}

// capacity feeds the service as fast as it can for a time. It returns its orders per
// second, and how many orders it has applied.
func (s *site) capacity(ctx context.Context, from *source, load load, lasts time.Duration) (capacity float64, applied int, err error) {
	begin := time.Now()

	full, err := s.feed(ctx, from, load, &applied, begin.Add(lasts))
	if err != nil {
		return 0, 0, err
	}

	capacity = float64(full.done) / time.Since(begin).Seconds()

	return capacity, applied, s.applied(ctx, load, applied)
}

// sampled publishes at a rate and samples the service meanwhile.
func (s *site) sampled(ctx context.Context, from *source, rate int, lasts time.Duration) (list []sample, err error) {
	published := make(chan error, 1)

	go func() {
		published <- from.publishSteadily(ctx, int(float64(rate)*lasts.Seconds()), rate, s.lab.skus)
	}()

	begin := time.Now()
	ticker := time.NewTicker(max(lasts/samples, time.Second))

	defer ticker.Stop()

	for {
		select {
		case err := <-published:
			return list, err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
			values, err := s.sample(ctx)
			if err != nil {
				return nil, err
			}

			list = append(list, sample{time.Since(begin), values})
		}
	}
}

// sample measures the service and its database.
func (s *site) sample(ctx context.Context) (figures, error) {
	f := figures{rss: memory(s.replicas[0].pid(), "VmRSS")}

	goroutines, err := metric(ctx, s.replicas[0].http, "go_goroutines")
	if err != nil {
		return nil, err
	}

	f["goroutines"] = goroutines

	var done, connections, latency float64

	err = s.pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'millrace%'),
		       (SELECT coalesce(sum(sold), 0) FROM stock)::float8,
		       coalesce((SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY (extract(epoch FROM pg_xact_commit_timestamp(xmin)) - split_part(id, '-', 1)::float8 / 1e6) * 1000)
		                 FROM orders WHERE created_at > clock_timestamp() - interval '1 min' AND id LIKE '1%' AND status = 'completed'), 0)`).
		Scan(&connections, &done, &latency)
	if err != nil {
		return nil, err
	}

	f["connections"], f[p95], f[doneOrders] = connections, latency, done

	sizes, err := postgres.Map[string, float64](ctx, s.pool, `
		SELECT coalesce(p.inhparent::regclass::text, c.relname), sum(pg_total_relation_size(c.oid))::float8 / 1024
		FROM pg_class c LEFT JOIN pg_inherits p ON p.inhrelid = c.oid
		WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace GROUP BY 1`)
	if err != nil {
		return nil, err
	}

	for table, kb := range sizes {
		f[table+" KB"] = max(kb, small)
	}

	return f, nil
}

// metric returns the sum of a metric of a process.
func metric(ctx context.Context, address, name string) (sum float64, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return 0, err
	}

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()

	for scanner := bufio.NewScanner(response.Body); scanner.Scan(); {
		series, value, _ := strings.Cut(scanner.Text(), " ")
		if base, _, _ := strings.Cut(series, "{"); base == name {
			number, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, err
			}

			sum += number
		}
	}

	return sum, nil
}

// recovers waits until nothing is waiting any more, and returns how long that took.
func (s *site) recovers(ctx context.Context) (time.Duration, error) {
	begin := time.Now()

	err := until(ctx, func() (bool, error) {
		var left int

		err := s.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM orders WHERE status NOT IN ('completed'))`).Scan(&left)
		if err == nil && time.Since(begin) > 10*time.Minute {
			err = fmt.Errorf("%d orders and messages are left after ten minutes", left)
		}

		return left == 0, err
	})

	return time.Since(begin), err
}

// judge prints a chart of each figure and returns those that grow. The first fifth of the
// run, in which caches and pools fill, does not count.
func judge(w io.Writer, list []sample) (growing []string) {
	list = list[len(list)/5:]
	if len(list) < 10 {
		return []string{"too few samples to tell: let it run for longer"}
	}

	fmt.Fprintf(w, "%-36s %10s %10s %8s\n", "figure", "median", "max", "growth")

	for _, name := range figuresOf(list) {
		values := column(list, name)
		if strings.HasSuffix(name, " KB") && slices.Max(values) == small {
			continue // a small table
		}

		growth, sure := trend(values)
		verdict := ""

		if growth > tolerated && sure {
			verdict = "GROWS"
			growing = append(growing, fmt.Sprintf("%s by %.0f %%", name, 100*growth))
		}

		fmt.Fprintf(w, "%-36s %10.1f %10.1f %7.1f%% %s %s\n", name, median(values), slices.Max(values), 100*growth, spark(values), verdict)
	}

	return growing
}

// figuresOf returns the names of all figures.
func figuresOf(list []sample) (all []string) {
	for _, s := range list {
		for name := range s.values {
			if !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}

	slices.Sort(all)

	return all
}

func column(list []sample, name string) (values []float64) {
	for _, s := range list {
		values = append(values, s.values[name])
	}

	return values
}

func median(values []float64) float64 { return quantile(slices.Sorted(slices.Values(values)), 0.5) }

// trend returns how much values grow from the first to the last, as a share of their
// median: the median of the slopes between all pairs (Theil and Sen), which a few outliers
// do not change. sure is true if that is not by chance (Mann and Kendall, one in a hundred).
func trend(values []float64) (growth float64, sure bool) {
	var (
		slopes []float64
		s      int
		n      = float64(len(values))
	)

	for i := range values {
		for j := i + 1; j < len(values); j++ {
			slopes = append(slopes, (values[j]-values[i])/float64(j-i))
			s += cmp.Compare(values[j], values[i])
		}
	}

	middle := median(values)
	if middle == 0 {
		return 0, false
	}

	z := float64(s-1) / math.Sqrt(n*(n-1)*(2*n+5)/18)

	return median(slopes) * (n - 1) / middle, z > 2.33
}

// spark draws values as a line of text.
func spark(values []float64) string {
	const bars = "▁▂▃▄▅▆▇█"

	low, high := slices.Min(values), slices.Max(values)

	var line strings.Builder

	for i := 0; i < len(values); i += max(1, len(values)/40) {
		level := 0
		if high > low {
			level = int((values[i] - low) / (high - low) * 7)
		}

		line.WriteRune([]rune(bars)[level])
	}

	return line.String()
}

// writeEndured writes the report as Markdown and the chart as SVG, beside each other.
func writeEndured(file string, capacity float64, rate int, list []sample, overload string) error {
	var text, chart strings.Builder

	fmt.Fprintf(&text, "# Endurance\n\nCapacity %.0f orders/s, load %d orders/s.\n\n```\n", capacity, rate)
	judge(&text, list)
	fmt.Fprintf(&text, "```\n\n%s", overload)

	all := figuresOf(list)
	fmt.Fprintf(&chart, `<svg xmlns="http://www.w3.org/2000/svg" width="900" height="%d" font-family="sans-serif" font-size="12">`+"\n", 60*len(all)+10)

	for i, name := range all {
		values := column(list, name)
		low, high := slices.Min(values), slices.Max(values)

		var points []string

		for n, value := range values {
			y := 25.0
			if high > low {
				y = 45 - 40*(value-low)/(high-low)
			}

			points = append(points, fmt.Sprintf("%.1f,%.1f", 300+float64(n)*580/float64(max(1, len(values)-1)), float64(60*i)+y+5))
		}

		fmt.Fprintf(&chart, `<text x="5" y="%d">%s: %.1f to %.1f</text><polyline fill="none" stroke="#2a6" points="%s"/>`+"\n", 60*i+35, name, low, high, strings.Join(points, " "))
	}

	chart.WriteString("</svg>\n")

	return errors.Join(os.WriteFile(file+".md", []byte(text.String()), 0o644), os.WriteFile(file+".svg", []byte(chart.String()), 0o644)) //nolint:gosec // a report
}
