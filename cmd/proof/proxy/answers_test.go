package proxy_test

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/millracehq/millrace/cmd/proof/proxy"
	"github.com/millracehq/millrace/cmd/proof/server"
)

// answering starts a server that answers whatever it gets with a frame.
func answering(t *testing.T, frame []byte) (address string) {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = listener.Close() })

	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}

			go func() {
				if _, err := conn.Read(make([]byte, 100)); err == nil {
					_, _ = conn.Write(frame)
				}
			}()
		}
	}()

	return listener.Addr().String()
}

// Only the confirmation of a broker that has stored a message is dropped.
func TestOnlyConfirmationsOfABrokerAreDropped(t *testing.T) {
	t.Parallel()

	kafka := func(key uint16) []byte { // size, key, version, correlation id
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16([]byte{0, 0, 0, 8}, key), 7), 42)
	}
	kafkaAnswer := []byte{0, 0, 0, 4, 0, 0, 0, 42}
	amqp := func(class, method byte) []byte { // type, channel, size, class, method, end
		return []byte{1, 0, 1, 0, 0, 0, 4, 0, class, 0, method, 0xce}
	}

	for name, c := range map[string]struct {
		answers         string
		request, answer []byte
		dropped         bool
	}{
		"Kafka stored records":      {server.Kafka, kafka(0), kafkaAnswer, true},
		"Kafka returned records":    {server.Kafka, kafka(1), kafkaAnswer, false},
		"RabbitMQ stored a message": {server.RabbitMQ, []byte("publish"), amqp(60, 80), true},
		"RabbitMQ delivered one":    {server.RabbitMQ, []byte("consume"), amqp(60, 60), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			port, err := server.FreePort()
			if err != nil {
				t.Fatal(err)
			}

			p, err := proxy.Start(port, answering(t, c.answer), c.answers)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()

			p.Drop(1)

			conn, err := net.Dial("tcp", p.Address())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()

			if _, err := conn.Write(c.request); err != nil {
				t.Fatal(err)
			}

			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}

			got := make([]byte, len(c.answer))
			if _, err := io.ReadFull(conn, got); (err != nil) != c.dropped || (p.Dropped() == 1) != c.dropped {
				t.Errorf("read %x, %v; %d answers dropped", got, err, p.Dropped())
			}
		})
	}
}
