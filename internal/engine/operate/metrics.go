package operate

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/health"
)

// collector exports what the process knows about itself, and what it last measured.
// A scrape asks no other system. An unknown value has no sample.
type collector struct {
	operator *Operator

	ready, trouble, connected, running, task *prometheus.Desc
	backlog, failed, lag, behind, clock      *prometheus.Desc
	partition, connections, limit            *prometheus.Desc
	waits, waited                            *prometheus.Desc
}

// NewCollector returns the metrics of o.
func NewCollector(o *Operator) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("millrace_"+name, help, labels, nil)
	}

	return &collector{
		operator:  o,
		ready:     desc("ready", "Whether /readyz returns 200 (1) or 503 (0)."),
		trouble:   desc("trouble", "1 for each trouble that /readyz and `millrace status` name, by level: unready, degraded or note.", "kind", "name", "level"),
		connected: desc("broker_connected", "Whether the broker is responding.", "broker"),
		running:   desc("consumer_running", "Whether messages for the consumer are applied (1); 0 while it is paused, waiting or not subscribed.", "consumer", "topic"),
		task:      desc("task_failing", "Whether background work is making no progress (1).", "task"),
		backlog:   desc("backlog_messages", "Messages for a topic that wait in the outbox, counted up to 100000 in all, or at the broker.", "topic", "place"),
		failed:    desc("failed_messages", "Waiting and stopped messages, each counted up to 100000 in all.", "consumer", "state"),
		lag:       desc("projection_lag_seconds", "Age of the oldest event that the projection has not read.", "projection"),
		behind:    desc("projection_behind", "Positions that the projection has not read.", "projection"),
		partition: desc("partition_lag_messages", "Records of a Kafka partition that its consumer group has not committed.", "topic", "partition"),

		connections: desc("pool_connections", "Connections of the pool to Postgres: idle, in use, or being opened.", "state"),
		limit:       desc("pool_max_connections", "Connections that the pool may open (postgres.max_conns)."),
		waits:       desc("pool_waits_total", "Times that work found no idle connection in the pool."),
		waited:      desc("pool_wait_seconds_total", "Time that work has waited for a connection of the pool."),

		clock: desc("clock_ahead_seconds", "How far the clock of the process is ahead of the database's."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.ready, c.trouble, c.connected, c.running, c.task, c.backlog, c.failed, c.lag, c.behind, c.clock,
		c.partition, c.connections, c.limit, c.waits, c.waited} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}

	process := c.operator.Process()
	facts, backlogs := c.operator.monitor.measured()
	troubles := withFacts(process.Troubles, facts)

	gauge(c.ready, number(health.Worst(troubles) != health.Unready))

	for _, t := range troubles {
		gauge(c.trouble, 1, t.Kind, t.Name, string(t.Level))
	}

	for _, b := range process.Connected {
		gauge(c.connected, number(b.Up()), b.Broker)
	}

	for _, s := range process.Consumers {
		gauge(c.running, number(s.State == Running), s.Consumer, s.Topic)
	}

	for _, t := range process.Tasks {
		gauge(c.task, number(t.Why != ""), t.Name)
	}

	for _, b := range backlogs {
		if b.Unknown == "" {
			gauge(c.backlog, float64(b.Messages), b.Topic, b.Broker)
		}

		for partition, lag := range b.partitions {
			gauge(c.partition, float64(lag), b.Topic, strconv.Itoa(int(partition)))
		}
	}

	c.pool(metrics)

	if facts != nil {
		c.counted(facts, gauge)
	}
}

// counted reports what was counted in the database.
func (c *collector) counted(facts *Facts, gauge func(desc *prometheus.Desc, value float64, labels ...string)) {
	if counts := facts.Counts; counts != nil {
		gauge(c.clock, counts.ClockAhead)

		for topic, n := range counts.DueByTopic {
			gauge(c.backlog, float64(n), topic, "outbox")
		}

		for consumer, n := range counts.FailedByConsumer {
			gauge(c.failed, float64(n.Waiting), consumer, "waiting")
			gauge(c.failed, float64(n.Stopped), consumer, "stopped")
		}
	}

	for _, p := range facts.Projections {
		gauge(c.behind, float64(p.Behind), p.Name)
		gauge(c.lag, p.Lag().Seconds(), p.Name)
	}
}

// pool exports pool usage.
func (c *collector) pool(metrics chan<- prometheus.Metric) {
	stat := c.operator.Pool.Stat()

	for state, n := range map[string]int32{"idle": stat.IdleConns(), "in use": stat.AcquiredConns(), "opening": stat.ConstructingConns()} {
		metrics <- prometheus.MustNewConstMetric(c.connections, prometheus.GaugeValue, float64(n), state)
	}

	metrics <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, float64(stat.MaxConns()))
	metrics <- prometheus.MustNewConstMetric(c.waits, prometheus.CounterValue, float64(stat.EmptyAcquireCount()))
	metrics <- prometheus.MustNewConstMetric(c.waited, prometheus.CounterValue, stat.EmptyAcquireWaitTime().Seconds())
}

func number(yes bool) float64 {
	if yes {
		return 1
	}

	return 0
}
