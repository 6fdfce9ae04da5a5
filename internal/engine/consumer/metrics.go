package consumer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	messages     *prometheus.CounterVec
	duplicates   *prometheus.CounterVec
	poisoned     *prometheus.CounterVec
	handle       *prometheus.HistogramVec
	batchSize    *prometheus.HistogramVec
	batchSeconds *prometheus.HistogramVec
	unavailable  prometheus.Counter
	parkedKeys   prometheus.Gauge
	poisonOpen   prometheus.Gauge
	paused       prometheus.Gauge
}

func newMetrics(registry *prometheus.Registry) *metrics {
	factory := promauto.With(registry)
	// From 250 us, an idle transaction, to 64 s, longer than any time-out.
	seconds := prometheus.ExponentialBuckets(0.00025, 2, 19)

	return &metrics{
		messages: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_messages_total", Help: "Messages by their outcome: applied, poisoned, parked after a failure, put behind a parked one, or returned to the broker.",
		}, []string{"consumer", "topic", "outcome"}),
		duplicates: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_duplicates_total", Help: "Deliveries that the inbox recognised as applied before.",
		}, []string{"consumer"}),
		poisoned: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_poisoned_total", Help: "Messages that went to the poison queue.",
		}, []string{"topic", "reason"}),
		handle: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_handle_seconds", Help: "Time from the delivery of a message to its acknowledgement.", Buckets: seconds,
		}, []string{"consumer"}),
		batchSize: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_batch_size", Help: "Messages that shared a transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}, []string{"consumer"}),
		batchSeconds: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_batch_seconds", Help: "Duration of a transaction.", Buckets: seconds,
		}, []string{"consumer"}),
		parkedKeys: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_parked_keys", Help: "Keys that wait for another attempt at their first message, counted up to 10000.",
		}),
		poisonOpen: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_poison_open", Help: "Poisoned messages on which nobody has decided, counted up to 10000.",
		}),
		paused: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_consumers_paused", Help: "Consumers that an operator has paused.",
		}),
		unavailable: factory.NewCounter(prometheus.CounterOpts{
			Name: "millrace_postgres_retries_total", Help: "Attempts that failed because Postgres was unavailable or undecided.",
		}),
	}
}
