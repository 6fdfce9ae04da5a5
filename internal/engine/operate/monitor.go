package operate

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

const (
	// checkEvery is how often connected brokers are checked.
	checkEvery   = 5 * time.Second
	checkTimeout = 3 * time.Second
	// measureEvery is how often Postgres and the brokers are asked for counts.
	measureEvery   = 15 * time.Second
	measureTimeout = 10 * time.Second
	// maxMeasured bounds each count of the periodic measurement.
	maxMeasured = 100_000
	// lostAfter is how long a broker must have no subscription to a topic before the
	// topic counts as unsubscribed: a group that is being rebalanced briefly has none.
	lostAfter = 30 * time.Second
)

// monitor holds what a process last measured about itself.
type monitor struct {
	mu       sync.Mutex
	facts    *Facts
	backlogs []Backlog
	// lost maps each topic without a subscription to the time of the first measurement
	// that found none.
	lost map[string]time.Time
}

// unsubscribed returns the time since which the broker has had no subscription to a
// topic, or nil.
func (m *monitor) unsubscribed(topic string) *time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()

	if since, lost := m.lost[topic]; lost && time.Since(since) >= lostAfter {
		return &since
	}

	return nil
}

// measured returns the last measurement.
func (m *monitor) measured() (facts *Facts, backlogs []Backlog) {
	m.mu.Lock()
	defer m.mu.Unlock()

	return m.facts, m.backlogs
}

// Watch measures until ctx ends: whether brokers answer, what is waiting where, and the
// database's clock. A system that does not answer does not delay the others. Watch also
// remembers what Trends returns.
func (o *Operator) Watch(ctx context.Context) {
	var loops sync.WaitGroup
	defer loops.Wait()

	repeat := func(every, timeout time.Duration, measure func(context.Context)) {
		loops.Go(func() {
			for ctx.Err() == nil {
				bounded, cancel := context.WithTimeout(ctx, timeout)
				measure(bounded)
				cancel()

				_ = backoff.Sleep(ctx, every)
			}
		})
	}

	repeat(checkEvery, checkTimeout, o.checkBrokers)
	repeat(measureEvery, measureTimeout, func(bounded context.Context) {
		if facts := o.Facts(bounded, maxMeasured); ctx.Err() == nil {
			o.learn(facts)
		}
	})
	repeat(measureEvery, measureTimeout, func(bounded context.Context) {
		backlogs := o.Backlogs(bounded)

		o.monitor.mu.Lock()
		defer o.monitor.mu.Unlock()

		o.monitor.backlogs = backlogs
		o.monitor.note(backlogs)
	})
	repeat(measureEvery, measureTimeout, func(context.Context) { o.remember() })
}

// learn remembers facts, and since when parts have been unreadable. It logs new gaps, but
// those with the same reason only once. It forgets who paused a consumer and why, because
// /readyz shows the facts to everybody.
func (o *Operator) learn(facts Facts) {
	o.monitor.mu.Lock()
	defer o.monitor.mu.Unlock()

	now, logged := time.Now().UTC(), ""

	for i := range facts.Gaps {
		g := &facts.Gaps[i]
		g.Since = &now

		if before := o.monitor.facts.gap(g.Part); before != nil {
			g.Since = before.Since
		} else if g.Why != logged {
			o.Logger.Warn("could not read the "+g.Part+"; health and metrics do not include them", slog.String("error", g.Why))

			logged = g.Why
		}
	}

	for i, p := range facts.Paused {
		facts.Paused[i] = p.Anonymous()
	}

	o.monitor.facts = &facts
}

func (o *Operator) checkBrokers(ctx context.Context) {
	var checks sync.WaitGroup

	for _, conn := range o.Brokers.Conns() {
		checks.Go(func() { conn.Check(ctx) })
	}

	checks.Wait()
}

// note remembers which topics have no subscription.
func (m *monitor) note(backlogs []Backlog) {
	before := m.lost
	m.lost = map[string]time.Time{}

	for _, b := range backlogs {
		if b.Unknown != "" || b.Subscriptions > 0 {
			continue
		}

		m.lost[b.Topic] = time.Now().UTC()

		if since, was := before[b.Topic]; was {
			m.lost[b.Topic] = since
		}
	}
}

// Backlog is what a broker holds for a topic.
type Backlog struct {
	Topic  string `json:"topic"`
	Broker string `json:"broker"`
	// Messages is the number of messages waiting at the broker, Subscriptions the number
	// of subscriptions that it has. Unknown says why both are unknown.
	Messages      int64  `json:"messages"`
	Subscriptions int    `json:"subscriptions"`
	Unknown       string `json:"unknown,omitempty"`
	// Kept is how long the broker keeps messages on the topic, if that is longer than the
	// inbox remembers them.
	Kept       string `json:"kept,omitempty"`
	partitions map[int32]int64
}

// Partitions returns the messages waiting in each partition, if the broker has partitions.
func (b Backlog) Partitions() map[int32]int64 { return b.partitions }

// forgetful names the topics whose messages the inbox forgets before their broker does.
func forgetful(backlogs []Backlog, remembered time.Duration) []health.Trouble {
	var topics []string

	for _, b := range backlogs {
		if b.Kept != "" {
			topics = append(topics, fmt.Sprintf("%s (%s, %s)", b.Topic, b.Broker, b.Kept))
		}
	}

	if topics == nil {
		return nil
	}

	return []health.Trouble{{
		Kind: health.Config, Name: "inbox.retention", Level: health.Note,
		Reason: fmt.Sprintf("brokers keep messages longer than the inbox remembers them (%s): %s. Older ones are stopped when they are redelivered",
			remembered, strings.Join(topics, ", ")),
		Remedy: "raise inbox.retention above the topics' retention.ms, or lower retention.ms",
	}}
}

// Backlogs asks the brokers how many messages are waiting on each consumed topic. It
// leaves out topics whose messages wait only in the outbox.
func (o *Operator) Backlogs(ctx context.Context) []Backlog {
	consumed, _ := o.Router.Topics()

	var (
		mu     sync.Mutex
		list   []Backlog
		asking sync.WaitGroup
	)

	for _, conn := range o.Brokers.Conns() {
		var topics []string

		for _, topic := range consumed {
			if o.Brokers.Has(conn, topic) {
				topics = append(topics, topic)
			}
		}

		asking.Go(func() {
			found, err := conn.Backlogs(ctx, topics)
			if err != nil {
				found = nil

				for _, topic := range topics {
					found = append(found, broker.Backlog{Topic: topic, Err: err})
				}
			}

			mu.Lock()
			defer mu.Unlock()

			for _, b := range found {
				list = append(list, backlogOf(conn.Kind(), b, o.Retention))
			}
		})
	}

	asking.Wait()
	slices.SortFunc(list, func(a, b Backlog) int { return slices.Index(consumed, a.Topic) - slices.Index(consumed, b.Topic) })

	return list
}

func backlogOf(kind string, b broker.Backlog, remembered time.Duration) Backlog {
	backlog := Backlog{Topic: b.Topic, Broker: kind, Messages: b.Messages, Subscriptions: b.Subscriptions, partitions: b.Partitions}

	switch {
	case b.Retention == driver.Forever:
		backlog.Kept = "indefinitely"
	case b.Retention > remembered:
		backlog.Kept = "for " + b.Retention.String()
	}

	if b.Err != nil {
		backlog.Messages, backlog.Subscriptions, backlog.Unknown = 0, 0, scrub.Text(b.Err.Error())
	}

	return backlog
}
