package broker_test

import (
	"context"
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
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// harness describes a broker to the tests that all brokers must pass.
type harness struct {
	config broker.Config
	// produce publishes as another system would. It is nil if other systems cannot
	// publish.
	produce func(tb testing.TB, cfg broker.Config, topic string, messages ...brokertest.Foreign)
	// durable is true if the broker keeps messages while no process is connected.
	durable bool
}

func kafkaHarness(address string) harness {
	cfg := broker.DefaultConfig()
	cfg.Kind = broker.Kafka
	cfg.Kafka.Brokers = strings.Split(address, ",")
	cfg.Kafka.Partitions = 4 // enough for a test

	return harness{config: cfg, produce: brokertest.ProduceKafka, durable: true}
}

func rabbitMQHarness(address string) harness {
	cfg := broker.DefaultConfig()
	cfg.Kind = broker.RabbitMQ
	cfg.RabbitMQ.URL = postgres.Secret(address)
	cfg.RabbitMQ.Lanes = 8

	return harness{config: cfg, produce: brokertest.ProduceRabbitMQ, durable: true}
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	harness{config: broker.DefaultConfig()}.run(t)
}

func TestKafka(t *testing.T) {
	t.Parallel()
	kafkaHarness(brokertest.Address(t, brokertest.Kafka)).run(t)
}

func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	rabbitMQHarness(brokertest.Address(t, brokertest.RabbitMQ)).run(t)
}

func TestKafkaRestart(t *testing.T) {
	t.Parallel()

	server := brokertest.NewServer(t, "kafka.sh")
	h := kafkaHarness("127.0.0.1:" + server.Port)
	h.survivesRestart(t, server)
	h.endsWhileFrozen(t, server)
}

func TestRabbitMQRestart(t *testing.T) {
	t.Parallel()

	server := brokertest.NewServer(t, "rabbitmq.sh")
	h := rabbitMQHarness("amqp://guest:guest@127.0.0.1:" + server.Port + "/")
	h.survivesRestart(t, server)
	h.endsWhileFrozen(t, server)
}

// timeout bounds every wait.
const timeout = 60 * time.Second

func (h harness) run(t *testing.T) {
	t.Helper()

	t.Run("delivers with headers and key", func(t *testing.T) { t.Parallel(); h.delivers(t) })
	t.Run("keeps order per key", func(t *testing.T) { t.Parallel(); h.ordersPerKey(t) })
	t.Run("carries large messages", func(t *testing.T) { t.Parallel(); h.large(t) })
	t.Run("publish reports unacknowledged messages", func(t *testing.T) { t.Parallel(); h.closes(t) })

	t.Run("serves several consumers per topic", func(t *testing.T) { t.Parallel(); h.shared(t) })

	t.Run("applies many messages with few keys in order", func(t *testing.T) { t.Parallel(); h.hotKeys(t) })

	if !h.durable {
		t.Run("returns refused messages to the publisher", func(t *testing.T) { t.Parallel(); h.returns(t) })
	}

	if h.durable {
		t.Run("redelivers unacknowledged messages", func(t *testing.T) { t.Parallel(); h.redelivers(t) })
		t.Run("supports tailing", func(t *testing.T) { t.Parallel(); h.tails(t) })
		t.Run("measures backlogs and subscriptions", func(t *testing.T) { t.Parallel(); h.measures(t) })
		t.Run("delivers a topic that was published only before", func(t *testing.T) { t.Parallel(); h.publishedOnly(t) })
	}

	if h.produce != nil {
		t.Run("delivers messages from foreign producers again with the same ID", func(t *testing.T) { t.Parallel(); h.foreign(t) })
		t.Run("takes no foreign header for a reserved one", func(t *testing.T) { t.Parallel(); h.forged(t) })
	}
}

// open connects to the broker and declares topics as consumed.
func (h harness) open(tb testing.TB, topics ...string) *connection {
	tb.Helper()

	return h.connect(tb, true, topics...)
}

func (h harness) connect(tb testing.TB, consumed bool, topics ...string) *connection {
	tb.Helper()

	conn, err := broker.New(h.config, pgtest.Logger(tb))
	if err != nil {
		tb.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()

	declared := make([]broker.Topic, len(topics))
	for i, topic := range topics {
		declared[i] = broker.Topic{Name: topic, Consumed: consumed}
	}

	if err := conn.Connect(ctx, declared); err != nil {
		tb.Fatal(err)
	}

	return &connection{Conn: conn}
}

// connection also closes its subscribers, as the router does.
type connection struct {
	*broker.Conn

	subscribers []message.Subscriber
}

func (c *connection) Close() error {
	var errs []error
	for _, subscriber := range c.subscribers {
		errs = append(errs, subscriber.Close())
	}

	return errors.Join(append(errs, c.Conn.Close())...)
}

// received collects messages.
type received struct {
	handle func(*message.Message)

	mu   sync.Mutex
	list []*message.Message
}

// consume subscribes and passes each message to handle. If handle is nil, consume
// acknowledges the messages.
func consume(tb testing.TB, conn *connection, topic string, handle func(*message.Message)) *received {
	tb.Helper()

	subscriber, err := conn.Subscriber(topic, func([]byte) string { return "" })
	if err != nil {
		tb.Fatal(err)
	}

	conn.subscribers = append(conn.subscribers, subscriber)
	r := &received{handle: handle}

	if direct, ok := subscriber.(consumer.Direct); ok {
		direct.Handle(r.settle)
	}

	messages, err := subscriber.Subscribe(context.Background(), topic)
	if err != nil {
		tb.Fatal(err)
	}

	go func() {
		for msg := range messages {
			go r.receive(msg) // like Watermill's router: one goroutine for each message
		}
	}()

	return r
}

// receive collects a message and passes it on.
func (r *received) receive(msg *message.Message) {
	r.mu.Lock()
	r.list = append(r.list, msg)
	r.mu.Unlock()

	if r.handle != nil {
		r.handle(msg)
	} else {
		msg.Ack()
	}
}

// settle receives a message and waits for its answer.
func (r *received) settle(msg *message.Message) error {
	r.receive(msg)

	select {
	case <-msg.Acked():
		return nil
	case <-msg.Nacked():
		return errors.New("not acknowledged")
	case <-msg.Context().Done():
		return msg.Context().Err()
	}
}

// all returns the messages received so far.
func (r *received) all() []*message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()

	return slices.Clone(r.list)
}

// wait waits for n messages, then returns all received.
func (r *received) wait(tb testing.TB, n int) []*message.Message {
	tb.Helper()
	pgtest.Eventually(tb, fmt.Sprintf("%d messages arrive", n), func() bool { return len(r.all()) >= n })

	return r.all()
}

// newMessage returns a message as the relay would create it.
func newMessage(key, payload string) *message.Message {
	msg := message.NewMessage(event.NewID().String(), []byte(payload))
	msg.Metadata[event.HeaderKey] = key
	msg.Metadata[event.HeaderContentType] = "application/json"
	msg.Metadata["plain"] = "text"

	return msg
}

func (h harness) delivers(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)

	defer conn.Close()

	received := consume(t, conn, topic, nil)
	sent := newMessage("key", `{"a":1}`)
	sent.Metadata["binary"] = "\xff\x00\xfe"
	sent.Metadata["empty"] = ""
	sent.Metadata["unicode"] = "grün"

	want := maps.Clone(sent.Metadata)

	if err := conn.Publisher().Publish(topic, sent); err != nil {
		t.Fatal(err)
	}

	got := received.wait(t, 1)[0]
	if got.UUID != sent.UUID || string(got.Payload) != `{"a":1}` || got.Metadata[event.HeaderOrigin] == "" {
		t.Errorf("got %+v", got)
	}

	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got.Metadata[name] != want[name] {
			t.Errorf("header %s: got %q, expected %q", name, got.Metadata[name], want[name])
		}
	}
}

func (h harness) ordersPerKey(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)

	defer conn.Close()

	const keys, each = 20, 10

	received := consume(t, conn, topic, nil)

	var lanes sync.WaitGroup

	for key := range keys {
		lanes.Go(func() {
			for n := range each {
				if err := conn.Publisher().Publish(topic, newMessage(fmt.Sprint("k", key), fmt.Sprint(n))); err != nil {
					t.Error(err)
				}
			}
		})
	}

	lanes.Wait()

	next := map[string]int{}

	for _, msg := range received.wait(t, keys*each) {
		key := msg.Metadata[event.HeaderKey]
		if string(msg.Payload) != fmt.Sprint(next[key]) {
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

func (h harness) large(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	if h.config.Kind == broker.Kafka { // Kafka's default is 1 MiB
		h.createTopic(t, topic, "16777216")
	}

	conn := h.open(t, topic)

	defer conn.Close()

	received := consume(t, conn, topic, nil)
	large := strings.Repeat("x", 2<<20)

	if err := conn.Publisher().Publish(topic, newMessage("k", large)); err != nil {
		t.Fatal(err)
	}

	if got := received.wait(t, 1)[0]; string(got.Payload) != large {
		t.Errorf("got %d bytes", len(got.Payload))
	}
}

// closes checks that Publish never reports success for a lost message: a durable broker
// still has the message; with others, Publish fails.
func (h harness) closes(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)
	arrived := make(chan struct{}, 1)

	consume(t, conn, topic, func(*message.Message) {
		select {
		case arrived <- struct{}{}:
		default:
		}
	})

	result := make(chan error, 1)
	go func() { result <- conn.Publisher().Publish(topic, newMessage("k", "1")) }()

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
	case !h.durable && !errors.Is(err, broker.ErrClosed):
		t.Errorf("got %v, expected an error: the message was not acknowledged", err)
	case h.durable && err != nil:
		t.Error(err)
	}

	if err := conn.Publisher().Publish(topic, newMessage("k", "2")); err == nil {
		t.Error("publishing on a closed connection succeeded")
	}
}

// returns checks that a refused message is redelivered only by the publisher, which keeps
// the order.
func (h harness) returns(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)

	defer conn.Close()

	received := consume(t, conn, topic, func(msg *message.Message) {
		if string(msg.Payload) == "refused" {
			msg.Nack()
		} else {
			msg.Ack()
		}
	})

	if err := conn.Publisher().Publish(topic, newMessage("k", "refused")); err == nil {
		t.Error("publishing a refused message succeeded")
	}

	for range 10 {
		if err := conn.Publisher().Publish(topic, newMessage("k", "taken")); err != nil {
			t.Fatal(err)
		}
	}

	if all := received.all(); len(all) != 11 {
		t.Errorf("%d messages were delivered, expected 11", len(all))
	}
}

func (h harness) redelivers(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	first := h.open(t, topic)
	taken := consume(t, first, topic, func(*message.Message) {}) // never acknowledged

	for n := range 5 {
		if err := first.Publisher().Publish(topic, newMessage(fmt.Sprint(n), fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}

	taken.wait(t, 1)

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := h.open(t, topic)
	defer second.Close()

	got := map[string]bool{}
	for _, msg := range consume(t, second, topic, nil).wait(t, 5) {
		got[string(msg.Payload)] = true
	}

	if len(got) != 5 {
		t.Errorf("got %v", got)
	}
}

// consumeTwice refuses every message once, so that each is delivered twice.
func consumeTwice(tb testing.TB, conn *connection, topic string) *received {
	tb.Helper()

	var refused sync.Map

	return consume(tb, conn, topic, func(msg *message.Message) {
		if _, again := refused.LoadOrStore(string(msg.Payload), true); again {
			msg.Ack()
		} else {
			msg.Nack()
		}
	})
}

func (h harness) foreign(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)

	defer conn.Close()

	const uuid = "01890a5d-ac96-774b-bcce-b302099a8057"

	received := consumeTwice(t, conn, topic)
	h.produce(t, h.config, topic,
		brokertest.Foreign{Payload: []byte("bare")},
		brokertest.Foreign{Payload: nil, Headers: map[string]any{"empty": "yes"}},
		brokertest.Foreign{Payload: []byte("cloud"), Headers: map[string]any{"ce_id": "1", "ce_source": "shop", "millrace_key": "forged"}},
		brokertest.Foreign{Payload: []byte(`{"specversion": "1.0", "id": "2", "source": "shop", "type": "t", "data": "structured"}`)},
		brokertest.Foreign{Payload: []byte("uuid"), Headers: map[string]any{event.HeaderWatermillID: uuid}},
		brokertest.Foreign{Payload: []byte("native"), ID: "native-1", Headers: map[string]any{"number": int64(42), "binary": []byte{0xff, 0}}},
	)

	ids := map[string][]string{}
	for _, msg := range received.wait(t, 12) {
		ids[string(msg.Payload)] = append(ids[string(msg.Payload)], msg.UUID)
	}

	want := map[string][]string{
		"uuid":         {uuid, uuid},
		"cloud":        {event.ForeignID("cloudevents", "shop", "1").String(), event.ForeignID("cloudevents", "shop", "1").String()},
		`"structured"`: {event.ForeignID("cloudevents", "shop", "2").String(), event.ForeignID("cloudevents", "shop", "2").String()},
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

		if got[0] != got[1] {
			t.Errorf("%q got IDs %v", payload, got)
		}
	}
}

func (h harness) forged(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)

	defer conn.Close()

	received := consumeTwice(t, conn, topic)
	h.produce(t, h.config, topic,
		brokertest.Foreign{Payload: []byte("cloud"), Headers: map[string]any{"ce_id": "1", "ce_source": "shop", "millrace_key": "forged"}})

	for _, msg := range received.wait(t, 2) {
		if msg.Metadata[event.HeaderKey] == "forged" || msg.Metadata["x-millrace_key"] != "forged" {
			t.Errorf("a foreign header was taken for a reserved one: %v", msg.Metadata)
		}
	}
}

// survivesRestart checks that publishing fails while the broker is dead, and that
// publishing and consuming continue once it is back.
func (h harness) survivesRestart(t *testing.T, server *brokertest.Server) {
	t.Helper()

	topic := brokertest.Topic()
	conn, opened := h.open(t, topic), time.Now()
	empty := 0
	received := consume(t, conn, topic, func(msg *message.Message) {
		if len(msg.Payload) == 0 {
			empty++
		}

		msg.Ack()
	})

	if err := conn.Publisher().Publish(topic, newMessage("k", "before")); err != nil {
		t.Fatal(err)
	}

	received.wait(t, 1)

	// RabbitMQ may lose a quorum queue if it is killed within half a second of creating it.
	pgtest.Eventually(t, "the queue has reached the disk", func() bool { return time.Since(opened) > time.Second })
	server.Do("kill")

	if err := conn.Publisher().Publish(topic, newMessage("k", "lost")); err == nil {
		t.Error("publishing to a dead broker succeeded")
	}

	server.Do("start")
	pgtest.Eventually(t, "publishing works again", func() bool {
		return conn.Publisher().Publish(topic, newMessage("k", "after")) == nil
	})
	pgtest.Eventually(t, "the consumer continues", func() bool {
		all := received.all()

		return string(all[len(all)-1].Payload) == "after"
	})

	if empty > 0 {
		t.Errorf("received %d empty messages", empty)
	}

	if err := conn.Close(); err != nil {
		t.Log(err) // connections that were already dead may return errors
	}
}

// endsWhileFrozen checks that closing does not wait for a broker that hangs.
func (h harness) endsWhileFrozen(t *testing.T, server *brokertest.Server) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)
	taken := consume(t, conn, topic, func(*message.Message) {}) // never acknowledged

	if err := conn.Publisher().Publish(topic, newMessage("k", "1")); err != nil {
		t.Fatal(err)
	}

	taken.wait(t, 1)
	server.Do("freeze")

	defer server.Do("thaw")

	published, closed := make(chan error, 1), make(chan error, 1)
	go func() { published <- conn.Publisher().Publish(topic, newMessage("k", "2")) }()
	go func() { closed <- conn.Close() }()

	for what, done := range map[string]chan error{"publishing": published, "closing": closed} {
		select {
		case err := <-done:
			t.Logf("%s ended: %v", what, err)
		case <-time.After(20 * time.Second):
			t.Errorf("%s did not end", what)
		}
	}
}

// tails checks that tailing does not take messages from a consumer.
func (h harness) tails(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)

	tailer, ok := conn.Driver.(driver.Tailer)
	if !ok {
		t.Fatal("a durable broker cannot be tailed")
	}

	defer conn.Close()

	received := consume(t, conn, topic, nil)
	seen := make(chan *message.Message, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)

	go func() {
		ended <- tailer.Tail(ctx, topic, func(msg *message.Message) error {
			seen <- msg

			return nil
		})
	}()

	// Tail starts at an unknown moment, so publish until it sees a message.
	published := 0

	for deadline := time.Now().Add(timeout); len(seen) == 0; published++ {
		select {
		case err := <-ended:
			t.Fatalf("tailing has ended: %v", err)
		default:
		}

		if time.Now().After(deadline) {
			cancel()
			t.Fatalf("tail received nothing: %v", <-ended)
		}

		if err := conn.Publisher().Publish(topic, newMessage("k", `{"n":1}`)); err != nil {
			t.Fatal(err)
		}

		time.Sleep(100 * time.Millisecond)
	}

	if msg := <-seen; string(msg.Payload) != `{"n":1}` || msg.Metadata[event.HeaderKey] != "k" || msg.UUID == "" {
		t.Errorf("got %s with %v", msg.Payload, msg.Metadata)
	}

	received.wait(t, published) // the consumer gets all of them
	cancel()

	if err := <-ended; err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}

// publishedOnly checks what happens when a new release consumes a topic that earlier ones
// only published to.
func (h harness) publishedOnly(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()

	former := h.connect(t, false, topic)
	if err := errors.Join(former.Publisher().Publish(topic, newMessage("k", "before")), former.Close()); err != nil {
		t.Fatal(err)
	}

	next := h.open(t, topic)
	messages := consume(t, next, topic, nil)

	if err := next.Publisher().Publish(topic, newMessage("k", "after")); err != nil {
		t.Fatal(err)
	}

	if got := messages.wait(t, 2); string(got[0].Payload) != "before" || string(got[1].Payload) != "after" {
		t.Errorf("got %s, %s", got[0].Payload, got[1].Payload)
	}

	if err := next.Close(); err != nil {
		t.Error(err)
	}
}
