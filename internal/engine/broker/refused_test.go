package broker_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// defaultMaxMessageBytes is Kafka's default for message.max.bytes.
const defaultMaxMessageBytes = "1048588"

// admin returns an administrator of Kafka.
func admin(tb testing.TB, cfg broker.Config) sarama.ClusterAdmin {
	tb.Helper()

	settings := sarama.NewConfig()
	settings.Version = sarama.V3_0_0_0

	a, err := sarama.NewClusterAdmin(cfg.Kafka.Brokers, settings)
	must(tb, err)
	tb.Cleanup(func() { must(tb, a.Close()) })

	return a
}

// createTopic creates a topic that accepts batches of at most maxBytes.
func (h harness) createTopic(tb testing.TB, topic, maxBytes string) {
	tb.Helper()

	must(tb, admin(tb, h.config).CreateTopic(topic, &sarama.TopicDetail{
		NumPartitions: h.config.Kafka.Partitions, ReplicationFactor: 1, ConfigEntries: map[string]*string{"max.message.bytes": &maxBytes},
	}, false))
}

// relayed is a relay that publishes the outbox to a broker.
type relayed struct {
	*testing.T

	pool    *pgxpool.Pool
	relay   *outbox.Relay
	breaker *breaker.Breaker
	conn    *connection
	// registry holds the relay's metrics.
	registry *prometheus.Registry
}

// relay declares topics on a broker and runs a relay to it.
func (h harness) relay(t *testing.T, topics ...string) *relayed {
	t.Helper()

	logger, registry := pgtest.Logger(t), prometheus.NewRegistry()
	r := &relayed{T: t, registry: registry, pool: pgtest.New(t), breaker: breaker.NewSet(logger, registry).Get(h.config.Kind)}
	r.conn = h.open(t, topics...)
	r.relay = outbox.NewRelay(outbox.DefaultConfig(), r.pool, logger, registry)

	ctx, cancel := context.WithCancel(context.Background())

	var running sync.WaitGroup

	running.Go(func() {
		r.relay.Run(ctx, outbox.Target{Publisher: r.conn.Publisher(), Lanes: r.conn.Lanes(), Breaker: r.breaker})
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		must(t, r.conn.Close())
	})

	return r
}

// append stores n messages, each with its own key.
func (r *relayed) append(topic string, n, size int) {
	r.Helper()

	messages := make([]event.Message, n)
	for i := range messages {
		payload := fmt.Sprintf("%q", strings.Repeat("x", size-2))
		messages[i] = event.Message{ID: event.NewID(), Topic: topic, Key: rand.Text(), Payload: []byte(payload)}
	}

	must(r, postgres.InTx(context.Background(), r.pool, func(tx pgx.Tx) error {
		return outbox.AppendMessages(context.Background(), tx, messages)
	}))
	r.relay.Wake()
}

func (r *relayed) left(topic string) int {
	return pgtest.Value[int](r, r.pool, `SELECT count(*)::int FROM outbox WHERE topic = $1`, topic)
}

func TestManyMessagesArePublishedInBatchesThatTheBrokerTakes(t *testing.T) {
	t.Parallel()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	h.config.Kafka.Partitions = 1
	topic := brokertest.Topic()
	h.createTopic(t, topic, defaultMaxMessageBytes)

	r := h.relay(t, topic)
	r.append(topic, 600, 20_000)

	pgtest.Eventually(t, "all are published", func() bool { return r.left(topic) == 0 })

	if n, err := testutil.GatherAndCount(r.registry, "millrace_outbox_publish_errors_total"); err != nil || n > 0 {
		t.Errorf("the broker refused batches: %v", err)
	}
}

func TestAMessageThatTheBrokerNeverTakesDelaysNoOther(t *testing.T) {
	t.Parallel()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	topic := brokertest.Topic()
	h.createTopic(t, topic, defaultMaxMessageBytes)

	r := h.relay(t, topic)
	r.append(topic, 3, 1_048_477) // within our limit, but too large with their headers
	r.append(topic, 100, 1000)

	pgtest.Eventually(t, "the others are published, and the large ones refused", func() bool {
		refused, err := outbox.ListRefused(t.Context(), r.pool, topic, 0)

		return err == nil && len(refused) == 3 && r.left(topic) == 3
	})

	if state := r.breaker.State(); !state.Up {
		t.Errorf("a large message counts as an outage of the broker: %+v", state)
	}

	refused, err := outbox.ListRefused(t.Context(), r.pool, topic, 0)
	must(t, err)

	if e := refused[0]; !strings.Contains(e.Why, "too large") || e.Bytes != 1_048_477 {
		t.Errorf("got %+v", e)
	}

	operator := activity.Actor{Who: "test", Why: "test"}
	discarded, err := outbox.DiscardRefused(t.Context(), r.pool, []int64{refused[0].Seq, 1 << 40}, operator)
	must(t, err)

	larger := "2000000"
	must(t, admin(t, h.config).AlterConfig(sarama.TopicResource, topic, map[string]*string{"max.message.bytes": &larger}, false))

	conn := h.open(t, topic)
	defer conn.Close()

	pgtest.Eventually(t, "Kafka has applied the new limit", func() bool {
		return conn.Publisher().Publish(topic, newMessage("k", strings.Repeat("x", 1_048_477))) == nil
	})

	retried, err := outbox.RetryRefused(t.Context(), r.pool, []int64{refused[1].Seq, refused[2].Seq}, operator)
	must(t, err)

	if len(discarded) != 1 || len(retried) != 2 {
		t.Errorf("discarded %v, retried %v", discarded, retried)
	}

	pgtest.Eventually(t, "the retried ones are published", func() bool { return r.left(topic) == 0 })

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM operator_actions WHERE action IN ('discarded', 'retried')`); n != 3 {
		t.Errorf("%d actions are recorded, expected 3", n)
	}
}

func TestATopicThatCannotBeWrittenDelaysNoOther(t *testing.T) {
	t.Parallel()

	h := kafkaHarness(brokertest.Address(t, brokertest.Kafka))
	missing, topic := brokertest.Topic(), brokertest.Topic()

	r := h.relay(t, topic)
	r.append(missing, 3000, 10) // more than outbox.max_in_flight
	r.append(topic, 1000, 10)

	pgtest.Eventually(t, "the other topic is published", func() bool { return r.left(topic) == 0 })
	pgtest.Eventually(t, "the missing topic is named with its remedy", func() bool {
		stuck := r.relay.Stuck()

		return len(stuck) == 1 && stuck[0].Topic == missing && strings.Contains(stuck[0].Remedy, "create the topic")
	})

	if n := r.left(missing); n != 3000 {
		t.Errorf("%d messages wait for the missing topic, expected 3000", n)
	}

	if state := r.breaker.State(); !state.Up {
		t.Errorf("a missing topic counts as an outage of the broker: %+v", state)
	}

	h.createTopic(t, missing, defaultMaxMessageBytes)
	pgtest.Eventually(t, "all are published", func() bool { return r.left(missing) == 0 && len(r.relay.Stuck()) == 0 })
}
