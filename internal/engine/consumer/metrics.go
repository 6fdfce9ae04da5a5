package consumer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	messages     *prometheus.CounterVec
	duplicates   *prometheus.CounterVec
	stopped      *prometheus.CounterVec
	handle       *prometheus.HistogramVec
	batchSize    *prometheus.HistogramVec
	batchSeconds *prometheus.HistogramVec
	unavailable  prometheus.Counter
	waitingKeys  prometheus.Gauge
	stoppedNow   prometheus.Gauge
	paused       prometheus.Gauge
}

func newMetrics(registry *prometheus.Registry) *metrics {
	factory := promauto.With(registry)
	// From 250 us, an idle transaction, to 64 s, longer than any time-out.
	seconds := prometheus.ExponentialBuckets(0.00025, 2, 19)

	return &metrics{
		messages: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_messages_total", Help: "Messages by outcome: applied, stopped, parked after a failure, blocked by an earlier message of their key, or returned to the broker.",
		}, []string{"consumer", "topic", "outcome"}),
		duplicates: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_duplicates_total", Help: "Deliveries that the inbox recognized as applied before.",
		}, []string{"consumer"}),
		stopped: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_stopped_total", Help: "Messages that were stopped until an operator decides.",
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
		waitingKeys: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_failed_waiting_keys", Help: "Keys whose first message waits for its next attempt, counted up to 10000.",
		}),
		stoppedNow: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_failed_stopped", Help: "Stopped messages that wait for an operator, counted up to 10000.",
		}),
		paused: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_consumers_paused", Help: "Consumers that operators have paused.",
		}),
		unavailable: factory.NewCounter(prometheus.CounterOpts{
			Name: "millrace_postgres_retries_total", Help: "Attempts that failed because Postgres was unavailable or undecided.",
		}),
	}
}
