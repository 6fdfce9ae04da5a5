package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// line is the network between a client and the broker, which can be cut.
type line struct {
	mu   sync.Mutex
	cut  bool
	open []net.Conn
}

// Dial implements the interface of sarama's dialers.
func (l *line) Dial(network, address string) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.cut {
		return nil, errors.New("the line is cut")
	}

	conn, err := net.Dial(network, address)
	if err == nil {
		l.open = append(l.open, conn)
	}

	return conn, err
}

func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.cut = cut

	for _, conn := range l.open {
		_ = conn.Close()
	}

	l.open = nil
}

// TestWhatIsConfirmedIsOnItsTopicAfterOutages publishes while the line is cut again and
// again, each time until the client gives up. Each confirmed message is on its topic.
func TestWhatIsConfirmedIsOnItsTopicAfterOutages(t *testing.T) {
	t.Parallel()

	client := newClient(t)
	topic := newTopic(t, client, nil)
	l := &line{}

	settings := *client.Config()
	settings.Net.Proxy.Dialer = l

	connection, err := sarama.NewClient([]string{client.Brokers()[0].Addr()}, &settings)
	if err != nil {
		t.Fatal(err)
	}

	p := newPublisher(t.Context(), Config{}, connection)

	ctx, stop := context.WithCancel(t.Context())

	var (
		publishing sync.WaitGroup
		failures   atomic.Int64
		confirmed  sync.Map
		successes  atomic.Int64
	)

	for key := range 48 {
		publishing.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				msg := message.NewMessage(uuid.NewString(), fmt.Appendf(nil, "%d/%d", key, n))
				msg.Metadata.Set(event.HeaderKey, strconv.Itoa(key))

				if p.Publish(topic, msg) != nil {
					failures.Add(1)

					continue
				}

				confirmed.Store(string(msg.Payload), true)
				successes.Add(1)
			}
		})
	}

	more := func(what string, of *atomic.Int64, n int64) {
		enough := of.Load() + n
		pgtest.Eventually(t, what, func() bool { return of.Load() >= enough })
	}

	for range 3 {
		more("confirmed messages", &successes, 96)
		l.set(true)
		more("failed messages", &failures, 24)
		l.set(false)
	}

	more("confirmed messages after the last outage", &successes, 96)
	stop()
	publishing.Wait()

	written := payloads(t, client, topic)

	confirmed.Range(func(payload, _ any) bool {
		if text, ok := payload.(string); !ok || !written[text] {
			t.Errorf("message %s is confirmed, but not on its topic", payload)
		}

		return true
	})
}

// TestNothingIsWrittenBehindAMessageThatIsRefused: one publish has messages of one key, of
// which the fourth is larger than the topic allows.
func TestNothingIsWrittenBehindAMessageThatIsRefused(t *testing.T) {
	t.Parallel()

	const largest = 2000

	client := newClient(t)
	topic := newTopic(t, client, map[string]string{"max.message.bytes": strconv.Itoa(largest)})
	p := newPublisher(t.Context(), Config{}, client)

	var messages []*message.Message

	for n := range 6 {
		msg := message.NewMessage(uuid.NewString(), fmt.Appendf(nil, "%d", n))
		if n == 3 {
			msg.Payload = make([]byte, largest)
		}

		msg.Metadata.Set(event.HeaderKey, "a")
		messages = append(messages, msg)
	}

	refused, is := errors.AsType[*driver.RefusedError](p.Publish(topic, messages...))
	if !is || refused.Scope != driver.OneMessage {
		t.Fatalf("got %v", refused)
	}

	if written := payloads(t, client, topic); len(written) != 0 {
		t.Errorf("%d messages were written", len(written))
	}

	if err := p.Publish(topic, messages[:3]...); err != nil {
		t.Fatal(err)
	}

	if written := payloads(t, client, topic); len(written) != 3 {
		t.Errorf("%d messages were written, expected those before it", len(written))
	}
}

// TestARefusedMessageDelaysNoOther publishes messages of many keys at the same time to a
// topic that allows no batch of them all.
func TestARefusedMessageDelaysNoOther(t *testing.T) {
	t.Parallel()

	const n, largest = 40, 2000

	client := newClient(t)
	topic := newTopic(t, client, map[string]string{"max.message.bytes": strconv.Itoa(largest)})
	p := newPublisher(t.Context(), Config{}, client)

	var (
		publishing sync.WaitGroup
		failures   atomic.Int64
	)

	for key := range n {
		publishing.Go(func() {
			msg := message.NewMessage(uuid.NewString(), fmt.Appendf(make([]byte, 500), "%d", key))
			if key == 0 {
				msg.Payload = make([]byte, largest)
			}

			msg.Metadata.Set(event.HeaderKey, strconv.Itoa(key))

			if p.Publish(topic, msg) != nil {
				failures.Add(1)
			}
		})
	}

	publishing.Wait()

	if written := payloads(t, client, topic); len(written) != n-1 || failures.Load() != 1 {
		t.Errorf("%d messages were written, and %d refused", len(written), failures.Load())
	}
}

const partitions = 4

// newClient returns a client of the test's broker.
func newClient(t *testing.T) sarama.Client {
	t.Helper()

	brokers := os.Getenv("MILLRACE_TEST_KAFKA_BROKERS")
	if brokers == "" {
		t.Skip("MILLRACE_TEST_KAFKA_BROKERS is not set: run make services")
	}

	config := Config{Brokers: []string{brokers}}

	settings, err := New(config, slog.New(slog.DiscardHandler)).settings(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	client, err := sarama.NewClient(config.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = client.Close() })

	return client
}

func newTopic(t *testing.T, client sarama.Client, settings map[string]string) string {
	t.Helper()

	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		t.Fatal(err)
	}

	topic, detail := "published-"+uuid.NewString(), &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: map[string]*string{}}
	for name, value := range settings {
		detail.ConfigEntries[name] = &value
	}

	if err := admin.CreateTopic(topic, detail, false); err != nil {
		t.Fatal(err)
	}

	return topic
}

// payloads returns what is on a topic.
func payloads(t *testing.T, client sarama.Client, topic string) map[string]bool {
	t.Helper()

	consumer, err := sarama.NewConsumerFromClient(client)
	if err != nil {
		t.Fatal(err)
	}

	written := map[string]bool{}

	for partition := range int32(partitions) {
		var end int64

		// A partition of a new topic may not have a leader yet.
		pgtest.Eventually(t, "the partition has a leader", func() bool {
			end, err = client.GetOffset(topic, partition, sarama.OffsetNewest)

			return !errors.Is(err, sarama.ErrNotLeaderForPartition)
		})

		if err != nil {
			t.Fatal(err)
		}

		if end == 0 {
			continue
		}

		claim, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		if err != nil {
			t.Fatal(err)
		}

		for m := range claim.Messages() {
			written[string(m.Value)] = true

			if m.Offset >= end-1 {
				break
			}
		}

		_ = claim.Close()
	}

	return written
}
