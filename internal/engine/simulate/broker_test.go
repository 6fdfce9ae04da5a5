package simulate_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/broker/window"
	"github.com/millracehq/millrace/internal/engine/event"
)

// partitions is the number of partitions of a topic of the model that resembles Kafka. A
// queue of the model that resembles RabbitMQ is a topic with one.
const partitions = 3

// record is a message at the broker.
type record struct {
	headers event.Headers
	key     string
	payload []byte
}

// medium is a model of a broker: logs that subscribers read.
type medium struct {
	w *world
	// queues is true if the model resembles RabbitMQ: messages are acknowledged one by
	// one, and those that were not are delivered again when a subscription ends.
	queues bool
	topics map[string]*topic
}

type topic struct {
	name string
	logs [][]record
	// committed is the offset of each partition. acked has the messages of a queue that
	// are acknowledged.
	committed []int64
	acked     map[int64]bool
	// changed is closed and replaced with each message.
	changed chan struct{}

	members    []*member
	generation *generation
	// rebalance is signalled when members join or leave, or for no reason.
	rebalance chan struct{}
}

func newMedium(w *world, queues bool, names ...string) *medium {
	m := &medium{w: w, queues: queues, topics: map[string]*topic{}}

	for _, name := range names {
		n := partitions
		if queues {
			n = 1
		}

		t := &topic{
			name: name, logs: make([][]record, n), committed: make([]int64, n), acked: map[int64]bool{},
			changed: make(chan struct{}), rebalance: make(chan struct{}, 1), generation: &generation{end: func() {}},
		}
		m.topics[name] = t

		w.running.Go(func() { m.coordinate(t) })
	}

	return m
}

// append stores a message. The world is locked.
func (m *medium) append(name string, r record) {
	t := m.topics[name]
	h := fnv.New32a()
	_, _ = h.Write([]byte(r.key))
	p := int(h.Sum32()) % len(t.logs)
	t.logs[p] = append(t.logs[p], r)

	close(t.changed)
	t.changed = make(chan struct{})
}

// publisher publishes for a process.
type publisher struct {
	*medium

	owner *process
}

var (
	errNoAnswer = errors.New("the model does not answer")
	errTopic    = &driver.RefusedError{Scope: driver.OneTopic, Err: errors.New("the model refuses the topic")}
	errPart     = &driver.RefusedError{Scope: driver.OnePartition, Err: errors.New("the model refuses the partition")}
)

// Publish implements message.Publisher.
func (p publisher) Publish(name string, messages ...*message.Message) error {
	for _, msg := range messages {
		p.w.sleep(context.Background(), p.w.latency())
		p.w.mu.Lock()

		err := p.publish(name, msg)

		p.w.mu.Unlock()

		if err != nil {
			return err
		}
	}

	return nil
}

func (p publisher) publish(name string, msg *message.Message) error {
	switch f := p.w.faults.Load(); {
	case p.owner.dead, p.w.chance(f.publish):
		return errNoAnswer
	case p.w.chance(f.refuse):
		refused := *errTopic
		refused.Topic = name

		return &refused
	case p.w.chance(f.partition):
		return errPart
	}

	p.w.published(name, msg)
	p.append(name, record{headers: maps.Collect(driver.Sent(msg)), key: msg.Metadata[event.HeaderKey], payload: slices.Clone(msg.Payload)})

	if p.w.chance(p.w.faults.Load().confirm) {
		p.w.tracef("broker: the confirmation of %s is lost", msg.UUID)

		return errNoAnswer
	}

	return nil
}

// Close implements message.Publisher.
func (publisher) Close() error { return nil }

// generation is a time in which the members of a topic have the same partitions.
type generation struct {
	ctx      context.Context
	end      context.CancelFunc
	assigned map[*member][]int
	left     sync.WaitGroup
}

// member is the subscription of a process to a topic.
type member struct {
	*driver.Subscription
	*medium

	topic *topic
	owner *process
	key   func([]byte) string
	next  chan *generation
}

func (m *medium) subscriber(owner *process, name string, key func([]byte) string) *member {
	return &member{Subscription: driver.NewSubscription(), medium: m, topic: m.topics[name], owner: owner, key: key, next: make(chan *generation, 1)}
}

// Subscribe implements message.Subscriber.
func (m *member) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	return m.Run(ctx, func(ctx context.Context, out chan<- *message.Message) {
		m.join(true)
		defer m.join(false)

		for {
			select {
			case g := <-m.next:
				m.session(ctx, g, out)
			case <-ctx.Done():
				return
			}
		}
	}), nil
}

// join adds the member to the group of its topic, or removes it.
func (m *member) join(in bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()

	m.topic.members = slices.DeleteFunc(m.topic.members, func(other *member) bool { return other == m })
	if in && !m.owner.dead {
		m.topic.members = append(m.topic.members, m)
	}

	if !in {
		select {
		case g := <-m.next: // it takes no part in it
			g.left.Done()
		default:
		}
	}

	m.topic.nudge()
}

func (t *topic) nudge() {
	select {
	case t.rebalance <- struct{}{}:
	default:
	}
}

// rebalanceTimeout is how long members may keep their partitions after a rebalance has
// begun. Then others get them, whatever is still in hand.
const rebalanceTimeout = time.Second

// coordinate gives the partitions of a topic to its members.
func (m *medium) coordinate(t *topic) {
	for {
		select {
		case <-t.rebalance:
		case <-m.w.over.Done():
			t.generation.end()

			return
		}

		m.w.sleep(m.w.over, 10*time.Millisecond+m.w.latency())

		old := t.generation
		old.end()

		left := make(chan struct{})

		m.w.running.Go(func() {
			old.left.Wait()
			close(left)
		})

		select {
		case <-left:
		case <-time.After(rebalanceTimeout):
		}

		m.w.mu.Lock()
		m.assign(t)
		m.w.mu.Unlock()
	}
}

func (m *medium) assign(t *topic) {
	g := &generation{assigned: map[*member][]int{}}
	g.ctx, g.end = context.WithCancel(m.w.over)
	t.generation = g

	if len(t.members) == 0 {
		return
	}

	for p := range t.logs {
		to := t.members[(p+m.w.pick(len(t.members)))%len(t.members)]
		g.assigned[to] = append(g.assigned[to], p)
	}

	for _, to := range t.members {
		g.left.Add(1)

		select {
		case old := <-to.next: // it has not seen the last one
			old.left.Done()
		default:
		}

		to.next <- g
	}

	m.w.tracef("broker: %s: %d members", t.name, len(t.members))
}

// session consumes the partitions of a generation, as kafka.member and rabbitmq.session do.
func (m *member) session(ctx context.Context, g *generation, out chan<- *message.Message) {
	defer g.left.Done()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(g.ctx, stop)()

	budget := window.NewBudget(m.w.window, m.w.windowBytes)
	hand := &inHand{w: m.w}

	var claims sync.WaitGroup

	for _, p := range g.assigned[m] {
		claims.Go(func() { m.claim(ctx, g, p, budget, hand.tap(ctx, out)) })
	}

	claims.Wait()
}

// claim consumes a partition.
func (m *member) claim(ctx context.Context, g *generation, p int, budget *window.Budget, out chan<- *message.Message) {
	acks := window.Acks{UpTo: func(offset int64) { m.ack(g, p, offset, true) }}
	if m.queues {
		acks.One = func(offset int64) { m.ack(g, p, offset, false) }
	}

	w := window.New(ctx, budget, out, acks)
	defer w.Wait()

	m.w.mu.Lock()
	next := m.topic.committed[p]
	m.w.mu.Unlock()

	for ; ; next++ {
		r, ok := m.read(ctx, p, next)
		if !ok {
			return
		}

		if m.queues && m.isAcked(next) {
			continue
		}

		msg := driver.Received(r.headers, driver.Identity{Key: r.key, Origin: fmt.Sprintf("model:%s/%d@%d", m.topic.name, p, next)}, r.payload)
		if !w.Add(msg, driver.KeyOf(msg, m.key), next) {
			return
		}
	}
}

func (m *member) isAcked(offset int64) bool {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()

	return m.topic.acked[offset]
}

// read waits for a record.
func (m *member) read(ctx context.Context, p int, offset int64) (r record, ok bool) {
	for {
		m.w.mu.Lock()
		log, changed := m.topic.logs[p], m.topic.changed
		m.w.mu.Unlock()

		if offset < int64(len(log)) {
			r = log[offset]
			r.headers = event.Headers{}

			maps.Copy(r.headers, log[offset].headers)

			return r, ctx.Err() == nil
		}

		select {
		case <-changed:
		case <-ctx.Done():
			return r, false
		}
	}
}

// ack acknowledges one message, or all up to it. What it acknowledges must be settled. It
// counts after a while, unless the process has died or lost the partition.
func (m *member) ack(g *generation, p int, offset int64, all bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()

	if m.owner.dead {
		return
	}

	for at := m.topic.committed[p]; at <= offset; at++ {
		if all && !m.topic.acked[at] || at == offset {
			m.w.acknowledged(m.topic.name, m.topic.logs[p][at], fmt.Sprintf("%s/%d@%d", m.topic.name, p, at))
		}
	}

	delay := m.w.latency()
	if !m.queues {
		delay *= 20 // Kafka's clients commit now and then
	}

	time.AfterFunc(delay, func() {
		m.w.mu.Lock()
		defer m.w.mu.Unlock()

		if m.owner.dead || m.topic.generation != g {
			return
		}

		if m.queues {
			for at := m.topic.committed[p]; at <= offset; at++ {
				if all || at == offset {
					m.topic.acked[at] = true
				}
			}

			for m.topic.acked[m.topic.committed[p]] {
				m.topic.committed[p]++
			}
		} else {
			m.topic.committed[p] = max(m.topic.committed[p], offset+1)
		}
	})
}

// drained reports whether everything has been acknowledged.
func (m *medium) drained() bool {
	for _, t := range m.topics {
		for p, log := range t.logs {
			if t.committed[p] < int64(len(log)) {
				return false
			}
		}
	}

	return true
}

// inHand knows what a session has delivered.
type inHand struct {
	w    *world
	mu   sync.Mutex
	list []*message.Message
}

// tap returns a channel to deliver to. The budget of a session bounds what goes through
// all of its taps.
func (h *inHand) tap(ctx context.Context, out chan<- *message.Message) chan<- *message.Message {
	tap := make(chan *message.Message)

	h.w.running.Go(func() {
		for {
			select {
			case msg := <-tap:
				h.add(msg)

				select {
				case out <- msg:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})

	return tap
}

// add checks that what is delivered and not answered is within the budget.
func (h *inHand) add(msg *message.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()

	h.list = append(slices.DeleteFunc(h.list, answered), msg)
	bytes := 0

	for _, m := range h.list {
		bytes += len(m.Payload)
	}

	if len(h.list) > h.w.window || int64(bytes) > h.w.windowBytes && len(h.list) > 1 {
		h.w.problemf("%d messages with %d bytes are in hand, expected at most %d with %d", len(h.list), bytes, h.w.window, h.w.windowBytes)
	}
}

func answered(msg *message.Message) bool {
	select {
	case <-msg.Acked():
		return true
	case <-msg.Nacked():
		return true
	default:
		return false
	}
}
