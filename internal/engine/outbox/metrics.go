package outbox

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	published *prometheus.CounterVec
	errors    *prometheus.CounterVec
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
