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
	// From 250µs, an idle transaction, to 65s, longer than any timeout.
	seconds := prometheus.ExponentialBuckets(0.00025, 2, 19)

	return &metrics{
		messages: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_messages_total", Help: "Messages by outcome: applied, stopped, parked after a failure, blocked by an earlier message of their key, or returned to the broker.",
		}, []string{"consumer", "topic", "outcome"}),
		duplicates: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_duplicates_total", Help: "Deliveries of messages that were already applied.",
		}, []string{"consumer"}),
		stopped: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_stopped_total", Help: "Messages that were stopped and need an operator.",
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
			Name: "millrace_failed_waiting_keys", Help: "Keys whose first message failed and waits for its next attempt, counted up to 10000.",
		}),
		stoppedNow: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_failed_stopped", Help: "Stopped messages that need an operator, counted up to 10000.",
		}),
		paused: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_consumers_paused", Help: "Consumers paused by operators.",
		}),
		unavailable: factory.NewCounter(prometheus.CounterOpts{
			Name: "millrace_postgres_retries_total", Help: "Attempts that failed because Postgres was unavailable or the outcome was unknown.",
		}),
	}
}
