package broker_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// keyOf returns the key of a payload such as "key:1".
func keyOf(payload []byte) string {
	key, _, _ := strings.Cut(string(payload), ":")

	return key
}

// hold subscribes and holds the messages without answering them.
func hold(t *testing.T, conn *connection, topic string) *held {
	t.Helper()

	subscriber, err := conn.Subscriber(topic, keyOf)
	if err != nil {
		t.Fatal(err)
	}

	conn.subscribers = append(conn.subscribers, subscriber)

	messages, err := subscriber.Subscribe(context.Background(), topic)
	if err != nil {
		t.Fatal(err)
	}

	h := &held{messages: map[string]*message.Message{}}

	go func() {
		for msg := range messages {
			h.mu.Lock()
			h.messages[string(msg.Payload)] = msg
			h.mu.Unlock()
		}
	}()

	return h
}

// held holds the unanswered messages, by payload.
type held struct {
	mu       sync.Mutex
	messages map[string]*message.Message
}

// wait waits until the consumer holds exactly these payloads.
func (h *held) wait(t *testing.T, payloads ...string) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprintf("%d messages are in hand", len(payloads)), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()

		for _, payload := range payloads {
			if h.messages[payload] == nil {
				return false
			}
		}

		if len(h.messages) > len(payloads) {
			t.Fatalf("%d messages are in hand, expected %d", len(h.messages), len(payloads))
		}

		return true
	})
}

// any returns the payload of a message in hand, or "".
func (h *held) any() string {
	h.mu.Lock()
	defer h.mu.Unlock()

	for payload := range h.messages {
		return payload
	}

	return ""
}

// ack acknowledges messages.
func (h *held) ack(payloads ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()

	for _, payload := range payloads {
		h.messages[payload].Ack()
		delete(h.messages, payload)
	}
}

// onePartition returns a Kafka harness whose topics have one partition.
func onePartition(t *testing.T) harness {
	t.Helper()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	h.config.Kafka.Partitions = 1

	return h
}

// backlog returns the number of messages that the broker holds for the consumer group.
func backlog(t *testing.T, conn *connection, topic string) int64 {
	t.Helper()

	list, err := conn.Backlogs(t.Context(), []string{topic})
	if err != nil || len(list) != 1 || list[0].Err != nil {
		t.Fatalf("got %+v, %v", list, err)
	}

	return list[0].Messages
}

// TestAPartitionHasManyMessagesInHand: a producer that sets no key puts all messages into
// one partition. They are handled concurrently, in order for each key in the payloads.
func TestAPartitionHasManyMessagesInHand(t *testing.T) {
	t.Parallel()

	const keys = 50

	var (
		h             = onePartition(t)
		topic         = brokertest.Topic()
		conn          = h.open(t, topic)
		foreign       []brokertest.Foreign
		first, second []string
	)

	defer conn.Close()

	for key := range keys {
		first, second = append(first, fmt.Sprintf("k%d:1", key)), append(second, fmt.Sprintf("k%d:2", key))
	}

	for _, payload := range append(first, second...) {
		foreign = append(foreign, brokertest.Foreign{Payload: []byte(payload)})
	}

	in := hold(t, conn, topic)
	h.produce(t, h.config, topic, foreign...)

	in.wait(t, first...)
	in.ack(first[1:]...)
	in.wait(t, append(second[1:], first[0])...)
	in.ack(first[0])
	in.wait(t, second...)
	in.ack(second...)
}

// TestOffsetsStayBehindAMessageInHand: whoever subscribes next gets the message in hand
// and all behind it.
func TestOffsetsStayBehindAMessageInHand(t *testing.T) {
	t.Parallel()

	var (
		h        = onePartition(t)
		topic    = brokertest.Topic()
		conn     = h.open(t, topic)
		payloads = []string{"a:1", "b:1", "c:1", "d:1", "a:2", "b:2"}
		foreign  []brokertest.Foreign
	)

	for _, payload := range payloads {
		foreign = append(foreign, brokertest.Foreign{Payload: []byte(payload)})
	}

	in := hold(t, conn, topic)
	h.produce(t, h.config, topic, foreign...)
	in.wait(t, "a:1", "b:1", "c:1", "d:1")
	in.ack("a:1", "c:1", "d:1")
	in.wait(t, "b:1", "a:2")
	in.ack("a:2")

	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}

	conn = h.open(t, topic)
	defer conn.Close()

	if n := backlog(t, conn, topic); n != int64(len(payloads)-1) {
		t.Errorf("%d messages are not committed, expected all from the one in hand", n)
	}

	in = hold(t, conn, topic)
	in.wait(t, "b:1", "c:1", "d:1", "a:2")
	in.ack("b:1", "c:1", "d:1", "a:2")
	in.wait(t, "b:2")
	in.ack("b:2")
	pgtest.Eventually(t, "all are committed", func() bool { return backlog(t, conn, topic) == 0 })
}

// progress holds the number of the next message for each key. Payloads are 0, 1, 2...
type progress struct {
	mu   sync.Mutex
	next map[string]int
}

// take handles a message. It checks that all earlier messages with its key have arrived.
func (p *progress) take(t *testing.T, msg *message.Message) {
	t.Helper()

	var n int

	key := msg.Metadata[event.HeaderKey]
	if _, err := fmt.Sscan(string(msg.Payload), &n); err != nil {
		t.Error(err)
	}

	p.mu.Lock()

	switch {
	case n > p.next[key]:
		t.Errorf("%s: %d came before %d", key, n, p.next[key])
	case n == p.next[key]:
		p.next[key]++
	}

	p.mu.Unlock()
	time.Sleep(rand.N(20 * time.Millisecond)) // the handler's work
	msg.Ack()
}

// complete reports whether the given number of messages with each key have arrived.
func (p *progress) complete(keys, each int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	for key := range keys {
		if p.next[fmt.Sprint("k", key)] != each {
			return false
		}
	}

	return true
}

// TestMembersThatComeAndGoLoseNothing: partitions change hands while messages are in
// hand. Some are delivered twice, but none is lost, and none is delivered for the first
// time before an earlier one with its key.
func TestMembersThatComeAndGoLoseNothing(t *testing.T) {
	t.Parallel()

	const keys, each, rounds = 20, 60, 3

	var (
		h      = kafkaHarness(brokertest.Address(t, brokertest.Kafka))
		topic  = brokertest.Topic()
		got    = &progress{next: map[string]int{}}
		take   = func(msg *message.Message) { got.take(t, msg) }
		steady = h.open(t, topic)
	)

	defer steady.Close()

	consume(t, steady, topic, take)

	var producers sync.WaitGroup

	for key := range keys {
		producers.Go(func() {
			for n := range each {
				if err := steady.Publisher().Publish(topic, newMessage(fmt.Sprint("k", key), fmt.Sprint(n))); err != nil {
					t.Error(err)
				}
			}
		})
	}

	for range rounds {
		other := h.open(t, topic)
		consume(t, other, topic, take)
		pgtest.Eventually(t, "both members have partitions", func() bool { return subscriptions(t, steady, topic) == 2 })

		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}

	producers.Wait()
	pgtest.Eventually(t, "all messages have arrived", func() bool { return got.complete(keys, each) })
}

// subscriptions returns the number of members in a topic's consumer group.
func subscriptions(t *testing.T, conn *connection, topic string) int {
	t.Helper()

	list, err := conn.Backlogs(t.Context(), []string{topic})
	if err != nil || len(list) != 1 {
		t.Fatalf("got %+v, %v", list, err)
	}

	return list[0].Subscriptions
}
