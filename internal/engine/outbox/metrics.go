package outbox

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/millracehq/millrace/internal/telemetry"
)

type metrics struct {
	published *prometheus.CounterVec
	errors    *prometheus.CounterVec
	delay     *prometheus.HistogramVec
	publish   *prometheus.HistogramVec
	oldest    prometheus.Gauge
	waiting   prometheus.Gauge
	shards    *prometheus.GaugeVec
}

func newMetrics(registry *prometheus.Registry) *metrics {
	factory := promauto.With(registry)

	return &metrics{
		published: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_outbox_published_total", Help: "Messages confirmed by a broker.",
		}, []string{"topic"}),
		errors: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_outbox_publish_errors_total", Help: "Failed attempts to publish; all are retried.",
		}, []string{"topic"}),
		delay: factory.NewHistogramVec(telemetry.Native(prometheus.HistogramOpts{
			Name: "millrace_outbox_delay_seconds", Help: "Time from a message's transaction to the broker's confirmation, including any delay requested for the message.",
		}), []string{"topic"}),
		publish: factory.NewHistogramVec(telemetry.Native(prometheus.HistogramOpts{
			Name: "millrace_outbox_publish_seconds", Help: "Time that a broker takes to confirm a message; the embedded one confirms when the message is applied.",
		}), []string{"broker"}),
		oldest: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_outbox_oldest_age_seconds", Help: "Age of the oldest due message that has not been published.",
		}),
		waiting: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_outbox_rows", Help: "Due messages that have not been published, counted up to 10000.",
		}),
		shards: factory.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_outbox_shards_owned", Help: "Shards of the outbox that this process publishes, by broker.",
		}, []string{"broker"}),
	}
}
