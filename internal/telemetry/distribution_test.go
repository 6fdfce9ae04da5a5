package telemetry_test

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/telemetry"
)

func TestADistributionSaysWhatAHistogramObserved(t *testing.T) {
	t.Parallel()

	vec := prometheus.NewHistogramVec(telemetry.Native(prometheus.HistogramOpts{Name: "sizes"}), []string{"consumer"})
	read := func() telemetry.Distribution {
		return telemetry.Read(vec, "consumer", telemetry.DistributionOf)["a"]
	}

	if d := read(); d.Count != 0 || !math.IsNaN(d.Quantile(0.5)) || d.Doubling() != nil {
		t.Errorf("nothing was observed: %+v", d)
	}

	for i := range 1000 {
		vec.WithLabelValues("a").Observe(float64(i + 1))
	}

	first := read()

	for share, want := range map[float64]float64{0.5: 500, 0.95: 950, 0.99: 990} {
		if got := first.Quantile(share); math.Abs(got-want) > want/10 {
			t.Errorf("quantile %g is %g, expected about %g", share, got, want)
		}
	}

	for _, size := range []float64{1, 1, 1, 8, 100} {
		vec.WithLabelValues("a").Observe(size)
	}

	since := read().Since(first)
	if since.Count != 5 || since.Sum != 111 {
		t.Errorf("since the first reading: %+v", since)
	}

	want := []telemetry.Bucket{{1, 3}, {2, 0}, {4, 0}, {8, 1}, {16, 0}, {32, 0}, {64, 0}, {128, 1}}
	if diff := cmp.Diff(want, since.Doubling()); diff != "" {
		t.Errorf("buckets (-want +got):\n%s", diff)
	}

	if got := since.Plus(since).Quantile(0.5); math.Abs(got-1) > 0.1 {
		t.Errorf("the median of a distribution and itself is %g", got)
	}

	if got := since.Since(first); got.Count != since.Count {
		t.Errorf("after a reset: %+v", got)
	}
}
