package consumer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// This file handles messages that arrived before one they depend on; see
// event.Await.

// awaited is the set of topics that waiting messages await.
type awaited struct {
	mu sync.Mutex
	// topics maps each topic to the time when this process last parked a message that
	// awaits it, or to zero if the topic was only read from Postgres.
	topics map[string]time.Time
}

// set replaces the topics with those that a read from Postgres returned. It keeps topics
// added after the read began, at since, because the read may have missed them.
func (a *awaited) set(topics []string, since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()

	maps.DeleteFunc(a.topics, func(_ string, added time.Time) bool { return !added.After(since) })
	a.put(topics, time.Time{})
}

func (a *awaited) add(topics []string) {
	if len(topics) == 0 {
		return
	}

	a.mu.Lock()
	defer a.mu.Unlock()

	a.put(topics, time.Now())
}

func (a *awaited) put(topics []string, added time.Time) {
	if a.topics == nil {
		a.topics = map[string]time.Time{}
	}

	for _, topic := range topics {
		if !added.Before(a.topics[topic]) {
			a.topics[topic] = added
		}
	}
}

func (a *awaited) has(topic string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()

	_, has := a.topics[topic]

	return has
}

// refreshAwaited reads which topics are awaited, because other replicas also park
// messages.
func (r *Router) refreshAwaited(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()

	started := time.Now()

	topics, err := r.failed.Awaited(ctx)
	if err == nil {
		r.awaited.set(topics, started)
	}

	return err
}

// wakeAwaiting makes due the keys that await the given messages, which have just been
// applied. If it fails, those keys are tried again when they become due.
func (r *Router) wakeAwaiting(topic string, keys []string) {
	if !r.awaited.has(topic) {
		return
	}

	r.briefly(r.working, "could not wake keys that await a message", func(ctx context.Context) error {
		woken, err := r.failed.Wake(ctx, topic, keys)
		if woken > 0 {
			r.retrySoon()
		}

		return err
	})
}

// overdue reports whether a message has waited for another one as long as it may. It is
// not overdue while the other message's topic is stalled, because that message may be in
// the backlog, nor for as long again afterwards, while the backlog is being processed. Nor
// is it overdue while the other message is among the failed messages or in the outbox;
// held says which. The wait starts over once the other message has left the outbox,
// because only then does that message reach its broker.
func (r *Router) overdue(d *delivery, early *event.EarlyError) (overdue bool, held string) {
	limit := r.cfg.AwaitTimeout

	switch {
	case limit == 0:
		return true, ""
	case d.waited >= 0 && d.waited < limit || r.Stalled(early.Topics...) != "" || time.Since(r.servedSince(early.Topics)) < limit:
		return false, ""
	}

	unknown := true

	r.briefly(r.working, "could not look for an awaited message", func(ctx context.Context) error {
		// Waiting messages for its own consumer are tried in turn.
		all := r.consumersOf(early.Topics)
		others := slices.DeleteFunc(slices.Clone(all), func(consumer string) bool { return consumer == d.route.Consumer })
		found, err := r.failed.Unresolved(ctx, others, all, []string{d.key})
		unknown = err != nil

		if len(found) > 0 {
			held = "a failed message has this key"
		}

		return err
	})

	if unknown || held != "" {
		return false, held
	}

	switch _, err := r.outbox.submit(early.Topics, d, nil); {
	case err != nil:
		r.awaitFrom(d, notBegun)

		return false, err.Error()
	case d.waited < 0: // the other one was in the outbox when this message was last tried
		r.awaitFrom(d, 0)
		d.waited = 0

		return false, ""
	default:
		return true, ""
	}
}

// notBegun postpones the start of a message's wait for one in the outbox. It is so long
// that the message is tried again before the wait starts, even if its consumer is paused.
// delivery.waited is negative until the wait starts.
const notBegun = 365 * 24 * time.Hour

// awaitFrom restarts a message's wait for another one, after a delay.
func (r *Router) awaitFrom(d *delivery, after time.Duration) {
	r.briefly(r.working, "could not record that an awaited message was in the outbox", func(ctx context.Context) error {
		return r.failed.AwaitFrom(ctx, *d.entry, after)
	})
}

var errUnpublished = errors.New("a message with this key is in the outbox, or the outbox is too long to search")

// lookInOutbox looks for messages on the units' topics with the units' keys. Units that
// arrive during one search share the next one.
func (r *Router) lookInOutbox(units []*unit[[]string]) (behind []*unit[[]string]) {
	var (
		topics, found []string
		searched      error
	)

	for _, u := range units {
		topics = append(topics, u.event...)
	}

	keys := postgres.Column(units, func(u *unit[[]string]) string { return event.Text(u.from.key) })

	r.briefly(r.working, "could not look for awaited messages in the outbox", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, outboxTimeout)
		defer cancel()

		found, searched = outbox.Unpublished(ctx, r.pool, topics, keys)

		return searched
	})

	for i, u := range units {
		if searched != nil || slices.Contains(found, keys[i]) {
			u.done <- errUnpublished
		} else {
			u.done <- nil
		}
	}

	return nil
}

// consumersOf returns the consumers of topics.
func (r *Router) consumersOf(topics []string) (consumers []string) {
	for _, topic := range topics {
		for _, route := range r.routesOf(topic) {
			consumers = append(consumers, route.Consumer)
		}
	}

	return consumers
}
