package rabbitmq

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// sharing spreads queues over replicas.
//
// RabbitMQ delivers the messages of a queue to one replica until its subscription ends, and
// then to the one that has subscribed next, because we declare queues with
// x-single-active-consumer. So the replica that starts first consumes all queues. When it
// cannot keep up, it passes some of them on, one by one and the smallest first. The next
// replica does the same.
type sharing struct {
	mu sync.Mutex
	// sessions holds how many messages each session had received when busy was last called.
	sessions map[*session]int64
	// left is how many queues may be passed on until a time.
	left  int
	until time.Time
}

// spell is the time in which a replica passes on at most half of its busy queues. They come
// back if there is no other replica, and go round if all are overloaded.
const spell = 5 * time.Minute

func (sh *sharing) add(s *session) {
	sh.mu.Lock()
	defer sh.mu.Unlock()

	sh.sessions[s] = 0
}

func (sh *sharing) remove(s *session) {
	sh.mu.Lock()
	defer sh.mu.Unlock()

	delete(sh.sessions, s)
}

// busy returns the sessions that have received messages since the last call, those with
// the fewest first.
func (sh *sharing) busy() (list []*session) {
	sh.mu.Lock()
	defer sh.mu.Unlock()

	fresh := map[*session]int64{}

	for s, before := range sh.sessions {
		received := s.received.Load()
		sh.sessions[s] = received

		if received > before {
			fresh[s] = received - before
			list = append(list, s)
		}
	}

	slices.SortFunc(list, func(a, b *session) int { return cmp.Compare(fresh[a], fresh[b]) })

	return list
}

// take reports whether one of that many busy queues may be passed on.
func (sh *sharing) take(busy int) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()

	if time.Now().After(sh.until) {
		sh.left, sh.until = busy/2, time.Now().Add(spell)
	}

	sh.left--

	return sh.left >= 0
}

// share has the queue with the fewest new messages passed on if messages wait in one of the
// queues that this process consumes. It does not pass on queues that are not as we would
// declare them: they may deliver to all replicas, or drop what comes back too often.
func (d *Driver) share(l *live) {
	busy := d.sharing.busy()
	if len(busy) < 2 {
		return
	}

	least := slices.IndexFunc(busy, func(s *session) bool { return d.topology.declared(s.topic) })
	if least < 0 || !slices.ContainsFunc(busy, func(s *session) bool { return waiting(l, s.topic) }) || !d.sharing.take(len(busy)) {
		return
	}

	d.logger.Debug("messages wait, so a queue is passed on to another replica", slog.String("topic", busy[least].topic))

	select {
	case busy[least].passOn <- struct{}{}:
	default: // it has been asked already
	}
}

// waiting reports whether a queue has messages that are not yet delivered. It reports false
// if the broker does not say: the subscription ends for the same reason.
func waiting(l *live, queue string) bool {
	found, err := inspect(l, queue)

	return err == nil && found.Messages > 0
}
