package consumer

import "sync"

// gate counts the messages in hand and, once closed, admits no more.
type gate struct {
	mu     sync.Mutex
	closed bool
	inHand sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()

	if !g.closed {
		g.inHand.Add(1)
	}

	return !g.closed
}

func (g *gate) leave() { g.inHand.Done() }

// close shuts the gate; the channel is closed once nothing is in hand.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()

	empty := make(chan struct{})

	go func() {
		g.inHand.Wait()
		close(empty)
	}()

	return empty
}
