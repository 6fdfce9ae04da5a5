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

// set replaces the topics with those of a read from Postgres that began at since. It
// keeps the topics added after that, which the read may have missed.
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

// wakeAwaiting makes the keys due that await the given messages, which have just been
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

// overdue reports whether a message has waited as long as it may for another one. Time
// does not count while the topic of the other message is stalled, because that message
// may be in its backlog, and for as long again afterwards, while the backlog is being
// processed. Nor does it count while the other message is among the failed messages or
// in the outbox; held says which. The time restarts once the other message has left the
// outbox, because it only reaches its broker then.
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

	switch _, err := r.outbox.submit(early.Topics, d); {
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

// notBegun delays the waiting time of a message that awaits one in the outbox. It is long
// enough that the message is tried again before that time begins, even if its consumer is
// paused. delivery.waited is negative until the time begins.
const notBegun = 365 * 24 * time.Hour

// awaitFrom starts the waiting time of a message that awaits another one after a delay.
func (r *Router) awaitFrom(d *delivery, after time.Duration) {
	r.briefly(r.working, "could not record that an awaited message was in the outbox", func(ctx context.Context) error {
		return r.failed.AwaitFrom(ctx, *d.entry, after)
	})
}

var errUnpublished = errors.New("a message with this key is in the outbox, or the outbox is too long to search")

// lookInOutbox looks for messages on the topics with the keys of units. Units that arrive
// during one search share the next one.
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
