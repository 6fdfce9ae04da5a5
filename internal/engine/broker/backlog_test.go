package broker_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// measures checks that an unconnected process sees the backlog at the broker and the
// number of subscriptions.
func (h harness) measures(t *testing.T) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.open(t, topic)

	beside, err := broker.New(h.config, pgtest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}

	expect := func(messages int64, subscribed bool) {
		t.Helper()
		pgtest.Eventually(t, "the backlog is measured", func() bool {
			list, err := beside.Backlogs(t.Context(), []string{topic, topic + ".missing"})
			if err != nil {
				t.Fatal(err)
			}

			if len(list) != 2 || list[1].Topic != topic+".missing" || list[1].Err == nil {
				t.Fatalf("got %+v, expected a topic that is measured and one that is missing", list)
			}

			return list[0].Err == nil && list[0].Messages == messages && (list[0].Subscriptions > 0) == subscribed
		})
	}

	expect(0, false)

	for range 7 {
		if err := conn.Publisher().Publish(topic, newMessage("k", `{}`)); err != nil {
			t.Fatal(err)
		}
	}

	expect(7, false)
	consume(t, conn, topic, func(msg *message.Message) { msg.Ack() }).wait(t, 7)
	expect(0, true)

	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}

	expect(0, false)

	if beside.State().Up() {
		t.Error("a process that has not connected says that it is connected")
	}
}

func TestABacklogIsUnknownWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()

	cfg := broker.DefaultConfig()
	cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	cfg.RabbitMQ.URL = postgres.Secret("amqp://guest:hunter2@127.0.0.1:1/")

	for _, kind := range []string{broker.Kafka, broker.RabbitMQ} {
		cfg.Kind = kind

		conn, err := broker.New(cfg, pgtest.Logger(t))
		if err != nil {
			t.Fatal(err)
		}

		started := time.Now()

		if list, err := conn.Backlogs(t.Context(), []string{"orders.created"}); err == nil || !strings.Contains(err.Error(), "reaching "+kind) {
			t.Errorf("%s: got %v, %v", kind, list, err)
		}

		if took := time.Since(started); took > 10*time.Second {
			t.Errorf("%s: took %s", kind, took)
		}
	}
}

// silence returns the address of a server that accepts connections and never answers.
func silence(t *testing.T) string {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = listener.Close() })

	return listener.Addr().String() // the kernel accepts up to the listener's backlog
}

func TestABacklogIsUnknownInTimeWhileTheBrokerDoesNotAnswer(t *testing.T) {
	t.Parallel()

	address := silence(t)
	cfg := broker.DefaultConfig()
	cfg.Kafka.Brokers = []string{address}
	cfg.RabbitMQ.URL = postgres.Secret("amqp://guest:guest@" + address + "/")

	for _, kind := range []string{broker.Kafka, broker.RabbitMQ} {
		cfg.Kind = kind

		conn, err := broker.New(cfg, pgtest.Logger(t))
		if err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()

		started := time.Now()

		if list, err := conn.Backlogs(ctx, []string{"orders.created"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %v, %v", kind, list, err)
		}

		if took := time.Since(started); took > 2*time.Second {
			t.Errorf("%s: took %s", kind, took)
		}
	}
}

// Losing an established connection is noticed even if no message is sent.
func TestAConnectedBrokerIsAskedWhetherItAnswers(t *testing.T) {
	t.Parallel()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	conn := h.open(t, brokertest.Topic())

	if state := conn.State(); !state.Up() || state.Since != nil || state.Why != "" {
		t.Errorf("after connecting: %+v", state)
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	conn.Check(ended)

	if state := conn.State(); state.Up() || !state.Established || state.Since == nil || state.Why == "" {
		t.Errorf("after no answer: %+v", state)
	}

	pgtest.Eventually(t, "the broker answers again", func() bool {
		conn.Check(t.Context())

		return conn.State().Up()
	})

	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}
