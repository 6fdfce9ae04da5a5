// Package proxy stands between the service and a server, and spoils the connections:
// slowly or suddenly with Toxiproxy, and by dropping exactly those answers that say that
// something has taken effect.
package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// Toxic is a fault of a connection: its type and attributes as Toxiproxy names them.
type Toxic struct {
	Type       string
	Attributes string
}

// Toxics are the faults to choose from. A timeout of 0 is a connection that is half open:
// it delivers nothing more, and nobody closes it.
var Toxics = []Toxic{
	{"latency", `{"latency": 150, "jitter": 150}`},
	{"reset_peer", `{"timeout": 100}`},
	{"timeout", `{"timeout": 0}`},
	{"limit_data", `{"bytes": 20000}`},
	{"slow_close", `{"delay": 500}`},
}

// Proxy forwards connections to a server.
type Proxy struct {
	// Port is where clients connect.
	Port int

	answers string
	dropper *dropper

	mu   sync.Mutex
	toxi *toxiproxy.Proxy
}

// Start starts a proxy on a port in front of the server at upstream. answers is the
// protocol whose answers Drop recognises: postgres, kafka or rabbitmq.
func Start(port int, upstream, answers string) (*Proxy, error) {
	d, err := startDropper(upstream, answers)
	if err != nil {
		return nil, err
	}

	p := &Proxy{Port: port, answers: answers, dropper: d}
	p.toxi = p.newToxi()

	return p, p.toxi.Start()
}

func (p *Proxy) newToxi() *toxiproxy.Proxy {
	return toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), p.answers, p.Address(), p.dropper.listener.Addr().String())
}

// Address is where clients connect.
func (p *Proxy) Address() string { return server.Loopback(p.Port) }

// Add adds a fault to all connections, until Heal. Downstream faults concern answers.
func (p *Proxy) Add(t Toxic, downstream bool) error {
	stream := "upstream"
	if downstream {
		stream = "downstream"
	}

	p.mu.Lock()
	defer p.mu.Unlock()

	_, err := p.toxi.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name": "%s", "type": "%[1]s", "stream": "%s", "toxicity": 1, "attributes": %s}`, t.Type, stream, t.Attributes)))

	return err
}

// Heal removes all faults and closes all connections, because those that were half open
// may stay so. It starts anew: Toxiproxy removes a fault from each connection in turn,
// and never returns if one of them closes meanwhile.
func (p *Proxy) Heal() error {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.toxi.Stop()
	p.toxi = p.newToxi()

	return p.toxi.Start()
}

// Drop closes the connection instead of delivering the next n answers that say that
// something has taken effect: to COMMIT, of a broker that has stored a message.
func (p *Proxy) Drop(n int) { p.dropper.armed.Store(int64(n)) }

// Dropped returns how many answers were dropped.
func (p *Proxy) Dropped() int { return int(p.dropper.dropped.Load()) }

// Close ends the proxy and its connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.toxi.Stop()
	_ = p.dropper.listener.Close()
}

// dropper forwards connections and can drop answers.
type dropper struct {
	upstream, answers string
	listener          net.Listener
	armed, dropped    atomic.Int64
}

func startDropper(upstream, answers string) (*dropper, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}

	d := &dropper{upstream: upstream, answers: answers, listener: listener}

	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}

			go d.serve(client)
		}
	}()

	return d, nil
}

// serve forwards one connection.
func (d *dropper) serve(client net.Conn) {
	defer client.Close()

	upstream, err := net.Dial("tcp", d.upstream)
	if err != nil {
		return
	}
	defer upstream.Close()

	c := &conn{awaits: map[uint32]bool{}}
	ended := make(chan struct{}, 2)

	go func() {
		if d.answers == server.Kafka {
			_ = c.kafkaRequests(upstream, client)
		} else {
			_, _ = io.Copy(upstream, client)
		}

		ended <- struct{}{}
	}()

	go func() {
		_ = d.forward(client, upstream, c)

		ended <- struct{}{}
	}()

	<-ended
}

// conn is what is known of a connection.
type conn struct {
	mu sync.Mutex
	// awaits holds the correlation ids of the produce requests that Kafka has not answered.
	awaits map[uint32]bool
}

var errDropped = errors.New("dropped")

// forward copies frames of the server, but not one that it drops.
func (d *dropper) forward(client io.Writer, upstream io.Reader, c *conn) error {
	for {
		frame, effect, err := d.frame(upstream, c)
		if err != nil {
			return err
		}

		if effect && d.armed.Add(-1) >= 0 {
			d.dropped.Add(1)

			return errDropped
		}

		if _, err := client.Write(frame); err != nil {
			return err
		}
	}
}

// frame reads a frame of the server; effect reports whether it says that something has
// taken effect.
func (d *dropper) frame(upstream io.Reader, c *conn) (frame []byte, effect bool, err error) {
	switch d.answers {
	case server.Kafka: // size, correlation id
		frame, err = read(upstream, 4, func(head []byte) int { return int(binary.BigEndian.Uint32(head)) })

		return frame, err == nil && len(frame) >= 8 && c.answered(binary.BigEndian.Uint32(frame[4:])), err
	case server.RabbitMQ: // type, channel, size; class and method; the end
		frame, err = read(upstream, 7, func(head []byte) int { return int(binary.BigEndian.Uint32(head[3:])) + 1 })

		return frame, err == nil && frame[0] == 1 && len(frame) >= 11 && binary.BigEndian.Uint32(frame[7:]) == 60<<16|80, err // basic.ack
	default: // type, size including itself
		frame, err = read(upstream, 5, func(head []byte) int { return int(binary.BigEndian.Uint32(head[1:])) - 4 })

		return frame, err == nil && frame[0] == 'C' && string(frame[5:]) == "COMMIT\x00", err
	}
}

// read reads a frame with a head of a fixed size, from which rest follows.
func read(r io.Reader, head int, rest func([]byte) int) ([]byte, error) {
	start := make([]byte, head)
	if _, err := io.ReadFull(r, start); err != nil {
		return nil, err
	}

	n := rest(start)
	if n < 0 || n > 256<<20 {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}

	frame := make([]byte, head+n)
	copy(frame, start)

	_, err := io.ReadFull(r, frame[head:])

	return frame, err
}

// kafkaRequests copies requests, and remembers which of them write.
func (c *conn) kafkaRequests(upstream io.Writer, client io.Reader) error {
	for {
		frame, err := read(client, 4, func(head []byte) int { return int(binary.BigEndian.Uint32(head)) })
		if err != nil {
			return err
		}

		// Produce requests have the key 0.
		if len(frame) >= 12 && binary.BigEndian.Uint16(frame[4:]) == 0 {
			c.mu.Lock()
			c.awaits[binary.BigEndian.Uint32(frame[8:])] = true
			c.mu.Unlock()
		}

		if _, err := upstream.Write(frame); err != nil {
			return err
		}
	}
}

func (c *conn) answered(id uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	defer delete(c.awaits, id)

	return c.awaits[id]
}
