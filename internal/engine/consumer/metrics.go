package consumer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/millracehq/millrace/internal/telemetry"
)

type metrics struct {
	messages     *prometheus.CounterVec
	duplicates   *prometheus.CounterVec
	stopped      *prometheus.CounterVec
	failures     *prometheus.CounterVec
	handle       *prometheus.HistogramVec
	batchWait    *prometheus.HistogramVec
	batchSize    *prometheus.HistogramVec
	batchSeconds *prometheus.HistogramVec
	unavailable  prometheus.Counter
	waitingKeys  prometheus.Gauge
	stoppedNow   prometheus.Gauge
	paused       prometheus.Gauge
}

func newMetrics(registry *prometheus.Registry) *metrics {
	factory := promauto.With(registry)
	return &metrics{
		messages: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_messages_total", Help: "Messages by outcome: applied, stopped, parked after a failure, blocked by an earlier message with their key, or returned to the broker.",
		}, []string{"consumer", "topic", "outcome"}),
		duplicates: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_duplicates_total", Help: "Deliveries of messages that were already applied.",
		}, []string{"consumer"}),
		stopped: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_stopped_total", Help: "Messages that were stopped and need an operator.",
		}, []string{"topic", "reason"}),
		failures: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_failures_total", Help: "Deliveries that were parked or stopped, by the reason; early and pending do not count as failures of the message.",
		}, []string{"consumer", "reason"}),
		handle: factory.NewHistogramVec(telemetry.Native(prometheus.HistogramOpts{
			Name: "millrace_handle_seconds", Help: "Time from the delivery of a message to its acknowledgement.",
		}), []string{"consumer"}),
		batchWait: factory.NewHistogramVec(telemetry.Native(prometheus.HistogramOpts{
			Name: "millrace_batch_wait_seconds", Help: "Time that a decoded message waits for its batch to begin.",
		}), []string{"consumer"}),
		batchSize: factory.NewHistogramVec(telemetry.Native(prometheus.HistogramOpts{
			Name: "millrace_batch_size", Help: "Messages that shared a transaction.",
		}), []string{"consumer"}),
		batchSeconds: factory.NewHistogramVec(telemetry.Native(prometheus.HistogramOpts{
			Name: "millrace_batch_seconds", Help: "Duration of a transaction.",
		}), []string{"consumer"}),
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
