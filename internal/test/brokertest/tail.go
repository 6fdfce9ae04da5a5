package brokertest

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
)

// tails reads along while a consumer gets every message.
func (h Harness) tails(t *testing.T) {
	t.Helper()

	topic := Topic()
	conn := h.Open(t, topic)

	tailer, ok := conn.Driver.(driver.Tailer)
	if !ok {
		t.Fatal("a durable broker cannot be tailed")
	}

	defer conn.Close()

	received := Consume(t, conn, topic, nil)
	seen := make(chan *message.Message, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)

	go func() {
		ended <- tailer.Tail(ctx, topic, func(msg *message.Message) error {
			seen <- msg

			return nil
		})
	}()

	// Tail reads from the present; nobody says when that is.
	published := 0

	for deadline := time.Now().Add(timeout); len(seen) == 0; published++ {
		if time.Now().After(deadline) {
			t.Fatal("tail has seen nothing")
		}

		if err := conn.Publisher().Publish(topic, NewMessage("k", `{"n":1}`)); err != nil {
			t.Fatal(err)
		}

		time.Sleep(100 * time.Millisecond)
	}

	if msg := <-seen; string(msg.Payload) != `{"n":1}` || msg.Metadata[event.HeaderKey] != "k" || msg.UUID == "" {
		t.Errorf("got %s with %v", msg.Payload, msg.Metadata)
	}

	received.Wait(t, published) // the consumer misses none
	cancel()

	if err := <-ended; err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}
