package operate

import (
	"maps"
	"math"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/telemetry"
)

// Trends cover trendsFor, in steps of measureEvery.
const (
	trendsFor   = 15 * time.Minute
	trendsSteps = int(trendsFor / measureEvery)
)

// trends holds what this process did lately. It is in memory, and reads nothing else.
type trends struct {
	mu      sync.Mutex
	samples []sample // oldest first
}

// sample is the state of the counters at a time. Its backlogs are those last measured, by
// topic, or nil if they are unknown.
type sample struct {
	at      time.Time
	totals  map[string]consumer.Totals
	backlog map[string]int64
}

// Trend is what this process did in the last 15 minutes.
type Trend struct {
	// Rate has the messages applied per second in each step, P95 the time in seconds
	// within which 95 % of the messages were acknowledged, and Backlog the messages that
	// waited in the outbox or at the broker. Oldest first; -1 is unknown.
	Rate, P95, Backlog []float64
	// Applied is the number of messages applied.
	Applied int64
	// Handle has the time from the delivery of a message to its acknowledgement, in
	// seconds, and Batch the number of messages in each transaction.
	Handle, Batch telemetry.Distribution
}

// remember takes a sample.
func (o *Operator) remember() {
	now := sample{at: time.Now(), totals: o.Router.Totals(), backlog: o.monitor.backlog()}

	o.trends.mu.Lock()
	defer o.trends.mu.Unlock()

	o.trends.samples = append(o.trends.samples, now)
	if extra := len(o.trends.samples) - trendsSteps - 1; extra > 0 {
		o.trends.samples = append([]sample{}, o.trends.samples[extra:]...)
	}
}

// backlog returns the messages that wait, by topic, as last measured.
func (m *monitor) backlog() map[string]int64 {
	facts, backlogs := m.measured()
	if facts == nil || facts.Counts == nil {
		return nil
	}

	waiting := maps.Clone(facts.Counts.DueByTopic)
	for _, b := range backlogs {
		waiting[b.Topic] += b.Messages
	}

	return waiting
}

// Trends returns the trend of each consumer, by name, and that of all together. It has no
// steps until the process has run for some.
func (o *Operator) Trends() (byConsumer map[string]Trend, all Trend) {
	o.trends.mu.Lock()
	samples := append([]sample{}, o.trends.samples...)
	o.trends.mu.Unlock()

	byConsumer = map[string]Trend{}

	for i := range max(len(samples)-1, 0) {
		before, after := samples[i], samples[i+1]
		seconds := after.at.Sub(before.at).Seconds()

		var (
			applied int64
			handle  telemetry.Distribution
		)

		for _, route := range o.Router.Routes() {
			was, is := before.totals[route.Consumer], after.totals[route.Consumer]
			n, took := is.Applied-was.Applied, is.Handle.Since(was.Handle)

			t := byConsumer[route.Consumer]
			t.add(n, seconds, took, is.Batch.Since(was.Batch), after.backlog, route.Topic)
			byConsumer[route.Consumer] = t

			applied += n
			handle = handle.Plus(took)
		}

		all.add(applied, seconds, handle, telemetry.Distribution{}, after.backlog, "")
	}

	return byConsumer, all
}

// add adds a step. The backlog is that of one topic, or of all if topic is empty.
func (t *Trend) add(applied int64, seconds float64, handle, batch telemetry.Distribution, backlog map[string]int64, topic string) {
	p95 := handle.Quantile(0.95)
	if math.IsNaN(p95) {
		p95 = -1
	}

	waiting := float64(-1)

	if backlog != nil {
		waiting = 0

		for name, n := range backlog {
			if topic == "" || topic == name {
				waiting += float64(n)
			}
		}
	}

	t.Rate, t.P95, t.Backlog = append(t.Rate, float64(applied)/seconds), append(t.P95, p95), append(t.Backlog, waiting)
	t.Applied += applied
	t.Handle, t.Batch = t.Handle.Plus(handle), t.Batch.Plus(batch)
}
