package consumer

import "sync"

// gate counts the messages in flight. Once closed it admits no more.
type gate struct {
	mu       sync.Mutex
	closed   bool
	inFlight sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()

	if !g.closed {
		g.inFlight.Add(1)
	}

	return !g.closed
}

func (g *gate) leave() { g.inFlight.Done() }

// close closes the gate. The returned channel is closed once no message is in flight.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()

	empty := make(chan struct{})

	go func() {
		g.inFlight.Wait()
		close(empty)
	}()

	return empty
}
