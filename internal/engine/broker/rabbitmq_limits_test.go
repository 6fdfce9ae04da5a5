package broker_test

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/broker/window"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// RabbitMQ delivers the messages of a queue that others have declared to its consumers in
// turn, whatever their keys. So two replicas have messages with the same key in hand at once.
func TestReplicasThatShareAQueueOfOthersGiveUpTheOrderOfAKey(t *testing.T) {
	t.Parallel()

	h, topic := rabbitMQHarness(brokertest.Address(t, brokertest.RabbitMQ)), brokertest.Topic()
	brokertest.DeclareRabbitMQ(t, h.config, topic, map[string]any{"x-queue-type": "quorum"})

	var (
		one, other  = h.open(t, topic), h.open(t, topic)
		inOne       = hold(t, one, topic)
		inOther     = hold(t, other, topic)
		first, next = inOne, inOther
	)

	defer one.Close()
	defer other.Close()

	pgtest.Eventually(t, "both replicas consume the queue", func() bool { return subscriptions(t, one, topic) == 2 })
	h.produce(t, h.config, topic, brokertest.Foreign{Payload: []byte("k:1")}, brokertest.Foreign{Payload: []byte("k:2")})
	pgtest.Eventually(t, "each has one of the messages in hand", func() bool { return inOne.any() != "" && inOther.any() != "" })

	if first.any() == "k:2" {
		first, next = next, first
	}

	next.ack("k:2") // the later one is applied first
	first.ack("k:1")
}

// A window bounds the payloads in hand, and RabbitMQ counts messages only: the rest is
// delivered too and stays in the client's buffer.
func TestTheClientBuffersWhatRabbitMQHasDelivered(t *testing.T) {
	t.Parallel()

	var (
		h     = rabbitMQHarness(brokertest.Address(t, brokertest.RabbitMQ))
		topic = brokertest.Topic()
		conn  = h.open(t, topic)
		in    = hold(t, conn, topic)
		large = func(key string) string { return key + ":" + strings.Repeat("x", window.MaxBytes/2+1) }
	)

	defer conn.Close()

	h.produce(t, h.config, topic, brokertest.Foreign{Payload: []byte(large("a"))}, brokertest.Foreign{Payload: []byte(large("b"))})
	in.wait(t, large("a"))
	pgtest.Eventually(t, "RabbitMQ has delivered both", func() bool { return backlog(t, conn, topic) == 0 })
	in.wait(t, large("a"))
	in.ack(large("a"))
	in.wait(t, large("b"))
	in.ack(large("b"))
}
