// Package window keeps many messages of one partition or queue in hand, in order per
// key. Package kafka and package rabbitmq share it.
package window

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/semaphore"

	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

// grace is how long Wait waits for messages in hand after the subscription has ended.
// Messages still unanswered are then redelivered, to whoever subscribes next.
const grace = 2 * time.Second

// maxTracked bounds the number of messages that a window tracks: those in hand, and those
// acknowledged behind one in hand. After a crash, the latter are delivered again.
const maxTracked = 1 << 16

// maxLoose is the number of acknowledged messages that may be behind one in hand before
// each is reported individually, if the broker allows that. NewBudget lowers it to a
// quarter of the budget, because a broker counts such messages as in hand.
const maxLoose = 128

// MaxBytes bounds the payloads of one topic that are in hand.
const MaxBytes = 16 << 20

// Budget bounds what the windows of one session have in hand.
type Budget struct {
	messages, bytes *semaphore.Weighted
	maxBytes        int64
	maxLoose        int
}

// NewBudget returns a budget of that many messages and bytes of payload. A larger message
// takes the whole budget, so it goes through alone.
func NewBudget(messages int, bytes int64) *Budget {
	return &Budget{
		messages: semaphore.NewWeighted(int64(messages)), bytes: semaphore.NewWeighted(bytes),
		maxBytes: bytes, maxLoose: max(1, min(messages/4, maxLoose)),
	}
}

// take blocks until there is room for a payload. It reports false if ctx ended first.
func (b *Budget) take(ctx context.Context, size int64) bool {
	if b.messages.Acquire(ctx, 1) != nil {
		return false
	}

	if b.bytes.Acquire(ctx, size) != nil {
		b.messages.Release(1)

		return false
	}

	return true
}

func (b *Budget) give(size int64) {
	b.bytes.Release(size)
	b.messages.Release(1)
}

// item is a message in hand. It stays in Window.order until all before it are finished.
type item struct {
	msg      *message.Message
	size     int64
	position int64
	finished bool
}

// Acks reports acknowledged messages to the broker. The calls do not overlap and must
// not block for long.
type Acks struct {
	// UpTo reports that the message at a position and all before it are finished.
	// Positions increase, but not every position is reported.
	UpTo func(position int64)
	// One reports that a single message is finished, while an earlier one is not. It is
	// nil if the broker cannot record that.
	One func(position int64)
}

// Window holds the messages of one partition or queue that are in hand. A lane delivers
// the messages with one key in order: the next one follows once the consumer has put
// the previous one in line, or has acknowledged it. A lane is a goroutine that exists
// while its key has messages, so idle keys cost nothing.
type Window struct {
	ctx     context.Context //nolint:containedctx // it is the lifetime of a session, not a request
	budget  *Budget
	tracked *semaphore.Weighted
	out     chan<- *message.Message
	acks    Acks

	running sync.WaitGroup
	// late is closed when Wait no longer waits for answers.
	late chan struct{}

	mu sync.Mutex
	// order holds the messages from the first unfinished one onwards, in order of
	// arrival. loose is the number of them that are finished.
	order []*item
	loose int
	lanes map[string]*lane
}

// New returns a window that sends messages to out until ctx ends. The context of each
// message ends with ctx.
func New(ctx context.Context, budget *Budget, out chan<- *message.Message, acks Acks) *Window {
	return &Window{
		ctx: ctx, budget: budget, tracked: semaphore.NewWeighted(maxTracked), out: out, acks: acks,
		late: make(chan struct{}), lanes: map[string]*lane{},
	}
}

// Add delivers a message after those added earlier with the same key. Messages with an
// empty key have no order. Positions must increase. Add blocks while the budget is used
// up, and reports false if ctx ends first. It must not be called concurrently.
func (w *Window) Add(msg *message.Message, key string, position int64) bool {
	added := &item{msg: msg, size: min(int64(len(msg.Payload)), w.budget.maxBytes), position: position}
	if w.tracked.Acquire(w.ctx, 1) != nil || !w.budget.take(w.ctx, added.size) {
		return false
	}

	if key == "" {
		key = "\x00" + strconv.FormatInt(position, 10) // a lane of its own; no real key has NUL
	}

	w.mu.Lock()
	defer w.mu.Unlock()

	w.order = append(w.order, added)

	l, exists := w.lanes[key]
	if !exists {
		l = newLane(w, key)
		w.lanes[key] = l
		w.running.Go(l.run)
	}

	l.waiting = append(l.waiting, added)
	crashpoint.At(crashpoint.WindowTracked)
	l.notify()

	return true
}

// finish marks done as finished.
func (w *Window) finish(done *item) {
	w.budget.give(done.size)

	w.mu.Lock()
	defer w.mu.Unlock()

	done.finished, done.msg = true, nil
	w.loose++

	crashpoint.At(crashpoint.WindowFinished)
	w.report()
}

// report reports what is finished and forgets it.
func (w *Window) report() {
	n := 0
	for n < len(w.order) && w.order[n].finished {
		n++
	}

	if n > 0 {
		w.acks.UpTo(w.order[n-1].position)
		crashpoint.At(crashpoint.WindowMarked)
		w.forget(n)
		clear(w.order[:n])
		w.order = w.order[n:]
	}

	if w.acks.One == nil || w.loose < w.budget.maxLoose {
		return
	}

	w.forget(w.loose)
	w.order = slices.DeleteFunc(w.order, func(i *item) bool {
		if i.finished {
			w.acks.One(i.position)
		}

		return i.finished
	})
}

// forget makes room for n more messages.
func (w *Window) forget(n int) {
	w.loose -= n
	w.tracked.Release(int64(n))
}

// Empty reports whether no message is in hand.
func (w *Window) Empty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()

	return len(w.order) == 0
}

// Wait waits for the answers to the messages that have been delivered, but not
// indefinitely. Call it after ctx has ended.
func (w *Window) Wait() {
	timer := time.AfterFunc(grace, func() { close(w.late) })
	defer timer.Stop()

	w.running.Wait()
}
