package telemetry

import (
	"math"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Distribution is what a native histogram has observed. The zero value has observed
// nothing.
type Distribution struct {
	Count int64
	Sum   float64

	// schema gives the bounds of buckets: bucket i ends at 2^(i * 2^-schema).
	schema int32
	// zero is the number of observations of about zero.
	zero int64
	// at are the indexes of the buckets that have observations, in order, and n their
	// numbers.
	at []int32
	n  []int64
}

// Read returns the metrics of a collector by the value of a label. It creates none. add
// adds one metric to those with the same value.
func Read[T any](from prometheus.Collector, label string, add func(T, *dto.Metric) T) map[string]T {
	metrics := make(chan prometheus.Metric)

	go func() {
		from.Collect(metrics)
		close(metrics)
	}()

	found := map[string]T{}

	for metric := range metrics {
		var m dto.Metric
		if metric.Write(&m) != nil {
			continue
		}

		for _, pair := range m.GetLabel() {
			if pair.GetName() == label {
				found[pair.GetValue()] = add(found[pair.GetValue()], &m)
			}
		}
	}

	return found
}

// DistributionOf returns what a metric with a native histogram has observed.
func DistributionOf(_ Distribution, m *dto.Metric) Distribution {
	h := m.GetHistogram()
	d := Distribution{Count: int64(h.GetSampleCount()), Sum: h.GetSampleSum(), schema: h.GetSchema(), zero: int64(h.GetZeroCount())} //nolint:gosec // far below the limits

	var (
		at int32
		n  int64
		i  int
	)

	for _, span := range h.GetPositiveSpan() {
		at += span.GetOffset()

		for range span.GetLength() {
			n += h.GetPositiveDelta()[i]
			if n > 0 {
				d.at, d.n = append(d.at, at), append(d.n, n)
			}

			at++
			i++
		}
	}

	return d
}

// Since returns what d has observed since it was before. A histogram that was reset in
// between has forgotten the rest.
func (d Distribution) Since(before Distribution) Distribution {
	if before.Count > d.Count {
		return d
	}

	schema := min(d.schema, before.schema)
	if before.Count == 0 {
		schema = d.schema
	}

	d, before = d.coarser(schema), before.coarser(schema)
	out := Distribution{Count: d.Count - before.Count, Sum: d.Sum - before.Sum, schema: schema, zero: d.zero - before.zero}

	for i, at := range d.at {
		n := d.n[i]
		if j, ok := slices.BinarySearch(before.at, at); ok {
			n -= before.n[j]
		}

		if n > 0 {
			out.at, out.n = append(out.at, at), append(out.n, n)
		}
	}

	return out
}

// Plus returns what either has observed.
func (d Distribution) Plus(other Distribution) Distribution {
	if d.Count == 0 {
		return other
	}

	if other.Count == 0 {
		return d
	}

	schema := min(d.schema, other.schema)
	d, other = d.coarser(schema), other.coarser(schema)
	sums := map[int32]int64{}

	for _, part := range []Distribution{d, other} {
		for i, at := range part.at {
			sums[at] += part.n[i]
		}
	}

	out := Distribution{Count: d.Count + other.Count, Sum: d.Sum + other.Sum, schema: schema, zero: d.zero + other.zero}

	for at := range sums {
		out.at = append(out.at, at)
	}

	slices.Sort(out.at)

	for _, at := range out.at {
		out.n = append(out.n, sums[at])
	}

	return out
}

// coarser returns d with the buckets of a schema with fewer of them.
func (d Distribution) coarser(schema int32) Distribution {
	for d.schema > schema {
		out := d
		out.schema, out.at, out.n = d.schema-1, nil, nil

		for i, at := range d.at {
			half := (at + 1) >> 1

			if last := len(out.at) - 1; last >= 0 && out.at[last] == half {
				out.n[last] += d.n[i]
			} else {
				out.at, out.n = append(out.at, half), append(out.n, d.n[i])
			}
		}

		d = out
	}

	return d
}

// Quantile returns the value below which a share of the observations are, to about a
// tenth, or NaN if there are none.
func (d Distribution) Quantile(share float64) float64 {
	if d.Count == 0 {
		return math.NaN()
	}

	rank := share * float64(d.Count)
	seen := float64(d.zero)

	if seen >= rank {
		return 0
	}

	value := 0.0

	for i, at := range d.at {
		value = d.bound(at)
		if seen += float64(d.n[i]); seen >= rank {
			break
		}
	}

	return value
}

func (d Distribution) bound(at int32) float64 {
	return math.Exp2(math.Ldexp(float64(at), -int(d.schema)))
}

// Bucket is a number of observations above the bound of the bucket before it.
type Bucket struct {
	UpTo  float64
	Count int64
}

// Doubling returns buckets of which each ends at twice the bound of the one before, from
// the first to the last with observations.
func (d Distribution) Doubling() (list []Bucket) {
	d = d.coarser(0)

	for i, at := range d.at {
		for n := len(list); n > 0 && list[n-1].UpTo < d.bound(at-1); n++ {
			list = append(list, Bucket{UpTo: 2 * list[n-1].UpTo})
		}

		list = append(list, Bucket{UpTo: d.bound(at), Count: d.n[i]})
	}

	return list
}
