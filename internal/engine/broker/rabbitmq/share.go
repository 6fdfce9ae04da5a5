package rabbitmq

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// errPassedOn reports that a subscription has ended so that another replica consumes the
// queue.
var errPassedOn = errors.New("the queue is passed on to another replica")

// sharing spreads queues over replicas.
//
// RabbitMQ delivers the messages of a queue to one replica until its subscription ends, and
// then to the one that has subscribed next, because we declare queues with
// x-single-active-consumer. So the replica that starts first consumes all queues. When it
// cannot keep up, it passes them on, one by one and the smallest first, until it can or has
// only one left. The next replica does the same.
type sharing struct {
	mu sync.Mutex
	// sessions holds how many messages each session had received when busy was last called.
	sessions map[*session]int64
	// passed holds when a topic's queue was last passed on.
	passed map[string]time.Time
}

// comeback is how long nothing is passed on after a queue that came back: there is no other
// replica, or none that can keep up.
const comeback = 5 * time.Minute

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

// pass ends a session for another replica.
func (sh *sharing) pass(s *session) {
	sh.mu.Lock()
	defer sh.mu.Unlock()

	sh.passed[s.topic] = time.Now()
	s.stop(errPassedOn)
}

// cameBack reports whether a session has a queue that was passed on not long ago.
func (sh *sharing) cameBack(s *session) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()

	return time.Since(sh.passed[s.topic]) < comeback
}

// share passes on the queue with the fewest new messages if messages wait in one of the
// queues that this process consumes. It does not pass on queues that are not as we would
// declare them: they may deliver to all replicas, or drop what comes back too often.
func (d *Driver) share(l *live) {
	busy := d.sharing.busy()
	if len(busy) < 2 || slices.ContainsFunc(busy, d.sharing.cameBack) {
		return
	}

	least := slices.IndexFunc(busy, func(s *session) bool { return d.topology.declared(s.topic) })
	if least < 0 || !slices.ContainsFunc(busy, func(s *session) bool { return waiting(l, s.topic) }) {
		return
	}

	d.logger.Debug("messages wait, so a queue is passed on to another replica", slog.String("topic", busy[least].topic))
	d.sharing.pass(busy[least])
}

// waiting reports whether a queue has messages that are not yet delivered. It reports false
// if the broker does not say: the subscription ends for the same reason.
func waiting(l *live, queue string) bool {
	var found amqp091.Queue

	err := onChannel(l, func(ch *amqp091.Channel) (err error) {
		found, err = ch.QueueDeclarePassive(queue, true, false, false, false, nil)

		return err
	})

	return err == nil && found.Messages > 0
}
