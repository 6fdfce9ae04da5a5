package window

import (
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/line"
)

// nackDelay is how long a nacked message waits before it is delivered again. The router
// nacks only while the service stops or a consumer is suspended.
const nackDelay = time.Second

// lane delivers the messages with one key in order. Its fields are guarded by Window.mu.
type lane struct {
	*Window

	key string
	// waiting holds the messages to be delivered, and delivered the unanswered ones, in
	// order.
	waiting, delivered []*item
	line               *line.Line
	// sending is true while the next message is on its way to the consumer, paused while
	// nacked messages wait.
	sending, paused bool
}

func newLane(w *Window, key string) *lane {
	l := &lane{Window: w, key: key}
	l.line = line.New(l.look)

	return l
}

// look is called when a message has joined the line or has been answered.
func (l *lane) look() {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.advance()
}

// advance finishes what is acknowledged and delivers what may follow. It ends the lane if
// the key has no messages, or if the session has ended and all delivered messages have
// been answered.
func (l *lane) advance() {
	if l.late {
		return
	}

	ended := l.ctx.Err() != nil

	for len(l.delivered) > 0 && isClosed(l.delivered[0].msg.Acked()) {
		l.finish(l.delivered[0])
		l.delivered[0] = nil
		l.delivered = l.delivered[1:]
	}

	switch {
	case l.sending || l.paused && !ended:
	case len(l.delivered) > 0 && (ended || isClosed(l.delivered[0].msg.Nacked())):
		l.takeBack(ended)
	case ended, len(l.waiting)+len(l.delivered) == 0:
		l.leave(l)
	case len(l.waiting) > 0 && (len(l.delivered) == 0 || l.line.Joined()):
		l.deliver()
	}
}

// deliver lets the window send the next message.
func (l *lane) deliver() {
	next := l.waiting[0]
	l.waiting[0] = nil
	l.waiting = l.waiting[1:]

	next.msg.SetContext(l.line.Context(l.ctx))

	l.sending = true
	l.send(delivery{l, next})
}

// sent is called once next has been sent, with nil if the session ended first.
func (l *lane) sent(next *item) {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.sending = false

	if next != nil {
		l.delivered = append(l.delivered, next)

		if !l.told {
			go l.await(next.msg)
		}
	}

	l.advance()
}

// await waits for the answer to a message.
func (l *lane) await(msg *message.Message) {
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	case <-l.left:
	}

	l.look()
}

// takeBack breaks the line. Once all delivered messages have been answered, those that the
// consumer did not acknowledge wait again, for a new line. If the session has ended, they
// stay with the broker.
func (l *lane) takeBack(ended bool) {
	l.line.Break()

	if slices.ContainsFunc(l.delivered, (*item).unanswered) {
		return
	}

	var left []*item

	for _, i := range l.delivered {
		if isClosed(i.msg.Acked()) {
			l.finish(i)
		} else {
			i.msg = i.msg.Copy() // an answer cannot be changed
			left = append(left, i)
		}
	}

	if ended {
		l.leave(l)

		return
	}

	l.waiting, l.delivered = append(left, l.waiting...), nil
	l.line, l.paused = line.New(l.look), true

	time.AfterFunc(nackDelay, l.resume)
}

// resume delivers nacked messages again.
func (l *lane) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.paused = false
	l.advance()
}

// unanswered reports whether the consumer has neither acknowledged nor refused the message.
func (i *item) unanswered() bool { return !isClosed(i.msg.Acked()) && !isClosed(i.msg.Nacked()) }

// isClosed reports whether a channel is closed.
func isClosed(channel <-chan struct{}) bool {
	select {
	case <-channel:
		return true
	default:
		return false
	}
}
