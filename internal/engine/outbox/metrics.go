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
	shards    prometheus.Gauge
}

func newMetrics(registry *prometheus.Registry) *metrics {
	factory := promauto.With(registry)

	return &metrics{
		published: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_outbox_published_total", Help: "Messages that the broker has confirmed.",
		}, []string{"topic"}),
		errors: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_outbox_publish_errors_total", Help: "Attempts to publish that failed; each is repeated.",
		}, []string{"topic"}),
		oldest: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_outbox_oldest_age_seconds", Help: "Age of the oldest message that is due and not published.",
		}),
		waiting: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_outbox_rows", Help: "Messages that are due and not published, counted up to 10000.",
		}),
		shards: factory.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_outbox_shards_owned", Help: "Shards of the outbox that this process publishes.",
		}),
	}
}
