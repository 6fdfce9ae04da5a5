package consumer

import "sync"

// gate counts the messages in hand and, once closed, admits no more.
type gate struct {
	mu     sync.Mutex
	inHand int
	closed bool
	empty  chan struct{}
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()

	if g.closed {
		return false
	}

	g.inHand++

	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()

	g.inHand--

	if g.closed && g.inHand == 0 {
		close(g.empty)
	}
}

// close shuts the gate; the channel is closed once nothing is in hand.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()

	if !g.closed {
		g.closed = true
		g.empty = make(chan struct{})

		if g.inHand == 0 {
			close(g.empty)
		}
	}

	return g.empty
}
