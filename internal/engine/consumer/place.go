package consumer

import (
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/line"
)

// lines tracks the messages for one consumer that are in lines; see package line.
type lines struct {
	mu sync.Mutex
	// wake is called, with mu held, when the messages behind another one may continue.
	wake func()
	// last has the last place of each line.
	last    map[*line.Line]*place
	tickets uint64
}

func newLines(wake func()) lines { return lines{wake: wake, last: map[*line.Line]*place{}} }

// place is the place of a message in its line. A nil place belongs to a message that
// is in no line and so has nothing ahead of it.
type place struct {
	line *line.Line
	// ahead is the place in front, or nil.
	ahead *place
	// ticket is the position in the order of arrival of all the consumer's messages.
	ticket uint64
	// batch is the number of the last batch that contained the message.
	batch uint64
	// over is true once the message's fate is decided. Those behind it may then be applied.
	over atomic.Bool
	// left is closed when the message leaves, if another one is waiting for it to leave.
	left chan struct{}
	// effect is closed when the message's effect has been performed or the message leaves,
	// if another one is waiting for that.
	effect chan struct{}
	// performed is true if the message's effect has been performed or is not needed, and
	// has not failed to be recorded.
	performed atomic.Bool
	// id is the message's id, if it has an effect.
	id uuid.UUID
}

// join adds a place at the end of a line.
func (l *lines) join(of *line.Line) *place {
	l.mu.Lock()
	defer l.mu.Unlock()

	p := &place{line: of, ahead: l.last[of], ticket: l.nextTicket()}
	l.last[of] = p

	return p
}

// leave ends a place. If the message is returned to its broker, so are those behind it
// that are not being applied.
func (l *lines) leave(p *place, returned bool) {
	if returned {
		p.line.Break()
	}

	wasOver := p.over.Swap(true)

	l.mu.Lock()
	defer l.mu.Unlock()

	p.ahead = nil

	if p.left != nil {
		close(p.left)
	}

	p.endEffect()

	if l.last[p.line] == p {
		delete(l.last, p.line)
	}

	if !wasOver {
		l.wake()
	}
}

// awaitTurn waits until the message ahead of p has left. It reports false if that message
// was returned to its broker, or if the broker takes back the line.
func (l *lines) awaitTurn(p *place) bool {
	l.mu.Lock()

	ahead := p.ahead
	if p.first() {
		l.mu.Unlock()

		return !p.broken()
	}

	if ahead.left == nil {
		ahead.left = make(chan struct{})
	}

	l.mu.Unlock()
	<-ahead.left

	return !p.broken()
}

// performed lets the message behind p perform its effect. p may be nil.
func (l *lines) performed(p *place, id uuid.UUID) {
	if p == nil {
		return
	}

	l.mu.Lock()
	defer l.mu.Unlock()

	p.id = id
	p.performed.Store(true)
	p.endEffect()
}

func (p *place) endEffect() {
	if p.effect != nil {
		close(p.effect)
		p.effect = nil
	}
}

// awaitEffect waits until the message ahead of p has performed its effect or has left. It
// reports whether p, which has the given id, may perform its own: the effect was
// performed, and no message ahead has the same id.
func (l *lines) awaitEffect(p *place, id uuid.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()

	ahead := p.ahead

	if !ahead.performed.Load() && !ahead.over.Load() {
		if ahead.effect == nil {
			ahead.effect = make(chan struct{})
		}

		ended := ahead.effect

		l.mu.Unlock()
		<-ended
		l.mu.Lock()
	}

	for other := ahead; other != nil && !other.over.Load(); other = other.ahead {
		if other.id == id {
			return false
		}
	}

	return ahead.performed.Load()
}

func (l *lines) nextTicket() uint64 {
	l.tickets++

	return l.tickets
}

// first reports whether nothing is ahead.
func (p *place) first() bool { return p == nil || p.ahead == nil || p.ahead.over.Load() }

// enter puts a message into a batch. It reports false if the message ahead is neither in
// the batch nor finished. The messages of a broken line enter, so that they are returned,
// unless their effects have been performed.
func (p *place) enter(batch uint64, performed bool) bool {
	switch {
	case p == nil:
		return true
	case !p.first() && p.ahead.batch != batch && (performed || !p.line.Broken()):
		return false
	}

	p.batch = batch

	return true
}

// broken reports whether the message must be returned to its broker.
func (p *place) broken() bool { return p != nil && p.line.Broken() }

// behind reports whether p is in the same line as other. The caller knows that other has
// the earlier place.
func (p *place) behind(other *place) bool { return p != nil && other != nil && p.line == other.line }
