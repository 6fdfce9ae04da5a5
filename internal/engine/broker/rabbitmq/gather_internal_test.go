package rabbitmq

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"
)

// held is a connection whose writes wait until they are let go.
type held struct {
	net.Conn

	begun  chan []byte
	letGo  chan error
	closed chan struct{}
}

func newHeld() *held {
	return &held{begun: make(chan []byte), letGo: make(chan error), closed: make(chan struct{}, 1)}
}

func (h *held) Write(p []byte) (int, error) {
	h.begun <- bytes.Clone(p)

	return len(p), <-h.letGo
}

func (h *held) Close() error {
	h.closed <- struct{}{}

	return nil
}

func write(tb testing.TB, conn net.Conn, text string) {
	tb.Helper()

	if _, err := conn.Write([]byte(text)); err != nil {
		tb.Fatal(err)
	}
}

func TestWhatIsWrittenDuringAWriteGoesOutTogether(t *testing.T) {
	t.Parallel()

	socket := newHeld()
	conn := gather(socket)

	write(t, conn, "a")

	if got := <-socket.begun; string(got) != "a" {
		t.Fatalf("wrote %q first", got)
	}

	for _, text := range []string{"b", "c", "d"} {
		write(t, conn, text)
	}

	socket.letGo <- nil

	if got := <-socket.begun; string(got) != "bcd" {
		t.Fatalf("wrote %q next, expected the rest in order", got)
	}

	socket.letGo <- nil
}

func TestAWriteThatFailsEndsTheConnection(t *testing.T) {
	t.Parallel()

	socket, failure := newHeld(), errors.New("reset")
	conn := gather(socket)

	write(t, conn, "a")
	<-socket.begun
	socket.letGo <- failure
	<-socket.closed

	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err := conn.Write([]byte("b"))
		if errors.Is(err, failure) {
			return
		}

		if time.Now().After(deadline) {
			t.Fatalf("the next write returned %v", err)
		}
	}
}

// A broker that does not read holds its writers back, and uses no more memory.
func TestABrokerThatDoesNotReadHoldsItsWritersBack(t *testing.T) {
	t.Parallel()

	socket := newHeld()
	conn := gather(socket)

	write(t, conn, "a")
	<-socket.begun

	_, err := conn.Write(make([]byte, maxGathered))
	if err != nil {
		t.Fatal(err)
	}

	held := make(chan error)

	go func() {
		_, err := conn.Write([]byte("c"))
		held <- err
	}()

	// Whichever comes first, the write must not have returned before the socket is free.
	select {
	case err := <-held:
		t.Fatalf("a write returned %v although %d bytes are waiting", err, maxGathered)
	case socket.letGo <- nil:
	}

	<-socket.begun

	if err := <-held; err != nil {
		t.Fatal(err)
	}

	socket.letGo <- nil

	if got := <-socket.begun; string(got) != "c" {
		t.Errorf("wrote %d bytes last", len(got))
	}

	socket.letGo <- nil
}
