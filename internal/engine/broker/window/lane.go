package window

import (
	"time"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/line"
)

// nackDelay is how long a nacked message waits before it is delivered again. The router
// nacks only while the service stops or a consumer is suspended.
const nackDelay = time.Second

// lane delivers the messages with one key in order.
type lane struct {
	*Window

	key string
	// waiting holds the messages to be delivered, guarded by Window.mu.
	waiting []*item
	// wake is signalled when waiting or line has changed.
	wake chan struct{}
	line *line.Line
	// delivered holds the unanswered messages, in order.
	delivered []*item
}

func newLane(w *Window, key string) *lane {
	wake := make(chan struct{}, 1)

	return &lane{Window: w, key: key, wake: wake, line: line.New(wake)}
}

// notify makes run look at waiting. It never blocks.
func (l *lane) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run delivers until the key has no messages, or until the session has ended and all
// delivered messages have been answered.
func (l *lane) run() {
	for l.ctx.Err() == nil {
		if len(l.delivered) == 0 || l.line.Joined() {
			next := l.next()

			switch {
			case next != nil:
				l.deliver(next)

				continue
			case len(l.delivered) == 0:
				return
			}
		}

		first := l.delivered[0]

		select {
		case <-first.msg.Acked():
			l.delivered = l.delivered[1:]
			l.finish(first)
		case <-first.msg.Nacked():
			l.again()
		case <-l.wake:
		case <-l.ctx.Done():
		}
	}

	l.line.Break() // whoever subscribes next gets what the consumer has not begun
	l.settle()
}

// next takes the next waiting message, or returns nil if there is none. If there is no
// delivered message left either, it ends the lane.
func (l *lane) next() *item {
	l.mu.Lock()
	defer l.mu.Unlock()

	if len(l.waiting) > 0 {
		next := l.waiting[0]
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]

		return next
	}

	if len(l.delivered) == 0 {
		delete(l.lanes, l.key)
	}

	return nil
}

// deliver sends a message to the consumer, unless the session ends first.
func (l *lane) deliver(next *item) {
	next.msg.SetContext(l.line.Context(l.ctx))

	select {
	case l.out <- next.msg:
		l.delivered = append(l.delivered, next)
	case <-l.ctx.Done():
	}
}

// again puts the messages that the consumer did not acknowledge back in waiting, in a new
// line.
func (l *lane) again() {
	l.line.Break()
	l.settle()

	if backoff.Sleep(l.ctx, nackDelay) != nil {
		return
	}

	for _, i := range l.delivered {
		i.msg = i.msg.Copy() // an answer cannot be changed
	}

	l.mu.Lock()
	defer l.mu.Unlock()

	l.waiting = append(l.delivered, l.waiting...)
	l.delivered, l.line = nil, line.New(l.wake)
}

// settle waits for the answers to all delivered messages. It keeps those that were not
// acknowledged.
func (l *lane) settle() {
	left := l.delivered[:0]

	for n, i := range l.delivered {
		select {
		case <-i.msg.Acked():
			l.finish(i)

			continue
		case <-i.msg.Nacked():
		case <-l.late:
			l.delivered = append(left, l.delivered[n:]...)

			return
		}

		left = append(left, i)
	}

	l.delivered = left
}
