package rabbitmq

import (
	"net"
	"runtime"
	"sync"
)

// maxGathered is the number of bytes that wait to be written before Write blocks.
const maxGathered = 1 << 20

// gathering is a connection that writes in the background: what is written while the
// previous write is on its way goes out together. The library writes each message and each
// acknowledgement by itself, so without it each costs a system call here and another at
// the broker. An error of a write ends the connection.
type gathering struct {
	net.Conn

	mu      sync.Mutex
	written sync.Cond // after each write
	pending []byte
	spare   []byte
	writing bool
	err     error
}

func gather(conn net.Conn) *gathering {
	g := &gathering{Conn: conn}
	g.written.L = &g.mu

	return g
}

// Write implements net.Conn. It returns an earlier write's error.
func (g *gathering) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()

	for len(g.pending) >= maxGathered && g.err == nil {
		g.written.Wait()
	}

	if g.err != nil {
		return 0, g.err
	}

	g.pending = append(g.pending, p...)

	if !g.writing {
		g.writing = true

		go g.write()
	}

	return len(p), nil
}

// write writes until nothing is pending.
func (g *gathering) write() {
	runtime.Gosched() // others that are ready may have something to add

	g.mu.Lock()
	defer g.mu.Unlock()

	for len(g.pending) > 0 && g.err == nil {
		out := g.pending
		g.pending = g.spare[:0]

		g.mu.Unlock()
		_, err := g.Conn.Write(out)
		g.mu.Lock()

		g.spare = out

		if err != nil {
			g.err = err
			_ = g.Close() // the reader learns of it
		}

		g.written.Broadcast()
	}

	g.writing = false
}
