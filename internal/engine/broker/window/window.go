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
	"github.com/millracehq/millrace/internal/engine/line"
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
// the previous one in line, or has acknowledged it. A lane exists while its key has
// messages. It needs no goroutine if the consumer tells it of its answers; see line.Telling.
type Window struct {
	ctx     context.Context //nolint:containedctx // it is the lifetime of a session, not a request
	budget  *Budget
	tracked *semaphore.Weighted
	out     chan<- *message.Message
	acks    Acks

	// told is true if the consumer tells the lanes of its answers.
	told bool
	// left is closed when the session has ended and all lanes have, or Wait no longer waits
	// for them.
	left chan struct{}

	mu sync.Mutex
	// ended is true after the end of the session, late once Wait no longer waits for answers.
	ended, late bool
	// outgoing holds the messages to be sent. busy is true while a goroutine sends them.
	outgoing []delivery
	busy     bool
	// order holds the messages from the first unfinished one onwards, in order of
	// arrival. loose is the number of them that are finished.
	order []*item
	loose int
	lanes map[string]*lane
}

// delivery is a message that a lane delivers.
type delivery struct {
	lane *lane
	next *item
}

// New returns a window that sends messages to out until ctx ends. The context of each
// message ends with ctx.
func New(ctx context.Context, budget *Budget, out chan<- *message.Message, acks Acks) *Window {
	w := &Window{
		ctx: ctx, budget: budget, tracked: semaphore.NewWeighted(maxTracked), out: out, acks: acks,
		told: line.Tells(ctx), left: make(chan struct{}), lanes: map[string]*lane{},
	}
	context.AfterFunc(ctx, w.end)

	return w
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

	if w.ended {
		return false
	}

	w.order = append(w.order, added)

	l, exists := w.lanes[key]
	if !exists {
		l = newLane(w, key)
		w.lanes[key] = l
	}

	l.waiting = append(l.waiting, added)
	crashpoint.At(crashpoint.WindowTracked)
	l.advance()

	return true
}

// send queues a message to be sent, behind those already queued.
func (w *Window) send(next delivery) {
	w.outgoing = append(w.outgoing, next)

	if !w.busy {
		w.busy = true

		go w.sendAll()
	}
}

// sendAll sends the queued messages, or drops them once the session has ended.
func (w *Window) sendAll() {
	for list := w.takeOutgoing(); len(list) > 0; list = w.takeOutgoing() {
		for _, d := range list {
			select {
			case w.out <- d.next.msg:
				d.lane.sent(d.next)
			case <-w.ctx.Done():
				d.lane.sent(nil)
			}
		}
	}
}

// takeOutgoing takes the queued messages.
func (w *Window) takeOutgoing() []delivery {
	w.mu.Lock()
	defer w.mu.Unlock()

	list := w.outgoing
	w.outgoing, w.busy = nil, len(list) > 0

	return list
}

// finish marks done as finished.
func (w *Window) finish(done *item) {
	w.budget.give(done.size)

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

// First returns the position of the first message in hand, and whether there is one.
func (w *Window) First() (position int64, inHand bool) {
	w.mu.Lock()
	defer w.mu.Unlock()

	if len(w.order) == 0 {
		return 0, false
	}

	return w.order[0].position, true
}

// end breaks all lines: whoever subscribes next gets what the consumer has not begun.
func (w *Window) end() {
	w.mu.Lock()
	defer w.mu.Unlock()

	for _, l := range w.lanes {
		l.advance()
	}

	w.ended = true

	if len(w.lanes) == 0 {
		close(w.left)
	}
}

// leave forgets a lane.
func (w *Window) leave(l *lane) {
	if w.lanes[l.key] != l { // it has ended already
		return
	}

	delete(w.lanes, l.key)

	if w.ended && len(w.lanes) == 0 {
		close(w.left)
	}
}

// Wait waits for the answers to the messages that have been delivered, but not
// indefinitely. Call it after ctx has ended.
func (w *Window) Wait() {
	timer := time.NewTimer(grace)
	defer timer.Stop()

	select {
	case <-w.left:
	case <-timer.C:
		w.giveUp()
	}
}

// giveUp stops waiting for answers.
func (w *Window) giveUp() {
	w.mu.Lock()
	defer w.mu.Unlock()

	if !w.late && len(w.lanes) > 0 {
		w.late = true
		close(w.left)
	}
}
