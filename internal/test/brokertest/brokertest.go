// Package brokertest is the test suite that every broker must pass.
package brokertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Foreign is a message from a producer that does not know Millrace.
type Foreign struct {
	Key     string
	ID      string // if the broker has message ids
	Headers map[string]any
	Payload []byte
}

// Harness describes a broker to the suite.
type Harness struct {
	Config broker.Config
	// Produce publishes as another system would. It is nil if no other system
	// can.
	Produce func(tb testing.TB, cfg broker.Config, topic string, messages ...Foreign)
	// Durable brokers keep messages while no process is connected.
	Durable bool
	// StableIDs says that a message without an id gets the same one with every
	// delivery.
	StableIDs bool
}

// timeout bounds every wait of the suite.
const timeout = 60 * time.Second

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Helper()

	t.Run("delivers with headers and key", func(t *testing.T) { t.Parallel(); h.delivers(t) })
	t.Run("keeps order per key", func(t *testing.T) { t.Parallel(); h.ordersPerKey(t) })
	t.Run("carries large messages", func(t *testing.T) { t.Parallel(); h.large(t) })
	t.Run("publish reports messages that were not acknowledged", func(t *testing.T) { t.Parallel(); h.closes(t) })

	t.Run("serves several consumers of a topic", func(t *testing.T) { t.Parallel(); h.shared(t) })

	if h.Durable {
		t.Run("redelivers what a consumer did not acknowledge", func(t *testing.T) { t.Parallel(); h.redelivers(t) })
		t.Run("lets others read along", func(t *testing.T) { t.Parallel(); h.tails(t) })
	}

	if h.Produce != nil {
		t.Run("accepts messages of foreign producers", func(t *testing.T) { t.Parallel(); h.foreign(t) })
	}
}

// Topic returns a topic that no other test uses.
func Topic() string { return "t-" + strings.ToLower(rand.Text()) }

// Open connects to the broker and declares topic as consumed.
func (h Harness) Open(tb testing.TB, topic string) *broker.Conn {
	tb.Helper()

	conn, err := broker.New(h.Config, pgtest.Logger(tb))
	if err != nil {
		tb.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()

	if err := conn.Connect(ctx, []broker.Topic{{Name: topic, Consumed: true}}); err != nil {
		tb.Fatal(err)
	}

	return conn
}

// Received collects messages.
type Received struct {
	mu   sync.Mutex
	list []*message.Message
}

// Consume subscribes and passes each message to handle, or acknowledges it if
// handle is nil.
func Consume(tb testing.TB, conn *broker.Conn, topic string, handle func(*message.Message)) *Received {
	tb.Helper()

	messages, err := conn.Subscriber(topic).Subscribe(context.Background(), topic)
	if err != nil {
		tb.Fatal(err)
	}

	r := &Received{}

	go func() {
		for msg := range messages {
			// Like Watermill's router: one goroutine for each message.
			go func() {
				r.mu.Lock()
				r.list = append(r.list, msg)
				r.mu.Unlock()

				if handle != nil {
					handle(msg)
				} else {
					msg.Ack()
				}
			}()
		}
	}()

	return r
}

// All returns the messages received so far.
func (r *Received) All() []*message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()

	return slices.Clone(r.list)
}

// Wait waits for n messages and returns them.
func (r *Received) Wait(tb testing.TB, n int) []*message.Message {
	tb.Helper()
	pgtest.Eventually(tb, fmt.Sprintf("%d messages arrive", n), func() bool { return len(r.All()) >= n })

	return r.All()
}

// NewMessage returns a message as the relay creates it.
func NewMessage(key, payload string) *message.Message {
	msg := message.NewMessage(event.NewID().String(), []byte(payload))
	msg.Metadata[event.HeaderKey] = key
	msg.Metadata[event.HeaderContentType] = "application/json"
	msg.Metadata["plain"] = "text"

	return msg
}

func (h Harness) delivers(t *testing.T) {
	t.Helper()

	topic := Topic()
	conn := h.Open(t, topic)

	defer conn.Close()

	received := Consume(t, conn, topic, nil)
	sent := NewMessage("key", `{"a":1}`)
	sent.Metadata["binary"] = "\xff\x00\xfe"
	sent.Metadata["empty"] = ""
	sent.Metadata["unicode"] = "grün"

	want := maps.Clone(sent.Metadata)

	if err := conn.Publisher().Publish(topic, sent); err != nil {
		t.Fatal(err)
	}

	got := received.Wait(t, 1)[0]
	if got.UUID != sent.UUID || string(got.Payload) != `{"a":1}` || got.Metadata[event.HeaderOrigin] == "" {
		t.Errorf("got %+v", got)
	}

	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got.Metadata[name] != want[name] {
			t.Errorf("header %s: got %q, expected %q", name, got.Metadata[name], want[name])
		}
	}
}

func (h Harness) ordersPerKey(t *testing.T) {
	t.Helper()

	topic := Topic()
	conn := h.Open(t, topic)

	defer conn.Close()

	const keys, each = 20, 10

	received := Consume(t, conn, topic, nil)

	var lanes sync.WaitGroup

	for key := range keys {
		lanes.Go(func() {
			for n := range each {
				if err := conn.Publisher().Publish(topic, NewMessage(fmt.Sprint("k", key), fmt.Sprint(n))); err != nil {
					t.Error(err)
				}
			}
		})
	}

	lanes.Wait()

	next := map[string]int{}

	for _, msg := range received.Wait(t, keys*each) {
		key := msg.Metadata[event.HeaderKey]
		// Consumers of the same RabbitMQ queue do not keep order between them.
		if h.Config.Kind != broker.RabbitMQ && string(msg.Payload) != fmt.Sprint(next[key]) {
			t.Fatalf("%s: got %s, expected %d", key, msg.Payload, next[key])
		}

		next[key]++
	}

	for key, n := range next {
		if n != each {
			t.Errorf("%s: %d messages, expected %d", key, n, each)
		}
	}
}

func (h Harness) large(t *testing.T) {
	t.Helper()

	topic := Topic()
	conn := h.Open(t, topic)

	defer conn.Close()

	received := Consume(t, conn, topic, nil)
	large := strings.Repeat("x", 2<<20)

	if err := conn.Publisher().Publish(topic, NewMessage("k", large)); err != nil {
		t.Fatal(err)
	}

	if got := received.Wait(t, 1)[0]; string(got.Payload) != large {
		t.Errorf("got %d bytes", len(got.Payload))
	}
}

// closes checks that Publish never reports success for a message that is lost: a
// durable broker has the message afterwards, on others Publish fails.
func (h Harness) closes(t *testing.T) {
	t.Helper()

	topic := Topic()
	conn := h.Open(t, topic)
	arrived := make(chan struct{}, 1)

	Consume(t, conn, topic, func(*message.Message) {
		select {
		case arrived <- struct{}{}:
		default:
		}
	})

	result := make(chan error, 1)
	go func() { result <- conn.Publisher().Publish(topic, NewMessage("k", "1")) }()

	select {
	case <-arrived:
	case <-time.After(timeout):
		t.Fatal("the message did not arrive")
	}

	if err := conn.Close(); err != nil {
		t.Error(err)
	}

	err := <-result

	switch {
	case !h.Durable && !errors.Is(err, broker.ErrClosed):
		t.Errorf("got %v, expected an error: nobody acknowledged the message", err)
	case h.Durable && err != nil:
		t.Error(err)
	}

	if err := conn.Publisher().Publish(topic, NewMessage("k", "2")); err == nil {
		t.Error("a closed connection publishes")
	}
}

func (h Harness) redelivers(t *testing.T) {
	t.Helper()

	topic := Topic()
	first := h.Open(t, topic)
	taken := Consume(t, first, topic, func(*message.Message) {}) // never acknowledged

	for n := range 5 {
		if err := first.Publisher().Publish(topic, NewMessage(fmt.Sprint(n), fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}

	taken.Wait(t, 1)

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := h.Open(t, topic)
	defer second.Close()

	got := map[string]bool{}
	for _, msg := range Consume(t, second, topic, nil).Wait(t, 5) {
		got[string(msg.Payload)] = true
	}

	if len(got) != 5 {
		t.Errorf("got %v", got)
	}
}

func (h Harness) foreign(t *testing.T) {
	t.Helper()

	topic := Topic()
	conn := h.Open(t, topic)

	defer conn.Close()

	const uuid = "01890a5d-ac96-774b-bcce-b302099a8057"

	var (
		refused  sync.Map
		received = Consume(t, conn, topic, func(msg *message.Message) {
			if _, again := refused.LoadOrStore(string(msg.Payload), true); again {
				msg.Ack()
			} else {
				msg.Nack() // so that each is delivered twice
			}
		})
	)

	h.Produce(t, h.Config, topic,
		Foreign{Payload: []byte("bare")},
		Foreign{Payload: nil, Headers: map[string]any{"empty": "yes"}},
		Foreign{Payload: []byte("cloud"), Headers: map[string]any{"ce_id": "1", "ce_source": "shop", "millrace_key": "forged"}},
		Foreign{Payload: []byte("uuid"), Headers: map[string]any{event.HeaderWatermillID: uuid}},
		Foreign{Payload: []byte("native"), ID: "native-1", Headers: map[string]any{"number": int64(42), "binary": []byte{0xff, 0}}},
	)

	ids := map[string][]string{}
	for _, msg := range received.Wait(t, 10) {
		ids[string(msg.Payload)] = append(ids[string(msg.Payload)], msg.UUID)

		if string(msg.Payload) == "cloud" && (msg.Metadata[event.HeaderKey] == "forged" || msg.Metadata["x-millrace_key"] != "forged") {
			t.Errorf("a foreign header passes for a reserved one: %v", msg.Metadata)
		}
	}

	want := map[string][]string{
		"uuid":  {uuid, uuid},
		"cloud": {event.ForeignID("cloudevents", "shop", "1").String(), event.ForeignID("cloudevents", "shop", "1").String()},
	}
	for payload, expected := range want {
		if diff := cmp.Diff(expected, ids[payload]); diff != "" {
			t.Errorf("%s: %s", payload, diff)
		}
	}

	for _, payload := range []string{"bare", "", "native"} {
		got := ids[payload]
		if len(got) != 2 {
			t.Fatalf("%q was delivered %d times, expected 2", payload, len(got))
		}

		stable := h.StableIDs || payload == "native"
		if (got[0] == got[1]) != stable {
			t.Errorf("%q has the ids %v", payload, got)
		}
	}
}

// SurviveRestart checks that publishing fails while the broker is dead, and that
// publishing and consuming continue once it is back.
func (h Harness) SurviveRestart(t *testing.T, server *Server) {
	t.Helper()

	topic := Topic()
	conn := h.Open(t, topic)
	empty := 0
	received := Consume(t, conn, topic, func(msg *message.Message) {
		if len(msg.Payload) == 0 {
			empty++
		}

		msg.Ack()
	})

	if err := conn.Publisher().Publish(topic, NewMessage("k", "before")); err != nil {
		t.Fatal(err)
	}

	received.Wait(t, 1)
	server.Do("kill")

	if err := conn.Publisher().Publish(topic, NewMessage("k", "lost")); err == nil {
		t.Error("publishing to a dead broker succeeds")
	}

	server.Do("start")
	pgtest.Eventually(t, "publishing works again", func() bool {
		return conn.Publisher().Publish(topic, NewMessage("k", "after")) == nil
	})
	pgtest.Eventually(t, "the consumer continues", func() bool {
		all := received.All()

		return string(all[len(all)-1].Payload) == "after"
	})

	if empty > 0 {
		t.Errorf("received %d empty messages", empty)
	}

	if err := conn.Close(); err != nil {
		t.Log(err) // connections that died earlier may return errors
	}
}
