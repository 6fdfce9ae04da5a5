package app_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestAnOrderGoesFromCreatedToCompleted(t *testing.T) {
	t.Parallel()

	r := apptest.Start(t)
	r.Seed()
	r.Publish("orders.created", `{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}`)
	r.Publish("orders.created", `{"order":{"id":"free","product_id":"product_1","quantity":1,"total_amount":0}}`)
	r.Publish("orders.created", `{"order":{"id":"many","product_id":"product_3","quantity":26,"total_amount":1}}`)
	r.WaitForOrder("order_123", "completed")
	r.WaitForOrder("free", "payment_failed")
	r.WaitForOrder("many", "inventory_unavailable")

	stock, err := r.Inventory.List(t.Context(), "product_1")
	if err != nil || stock[0].Available != 98 || stock[0].Sold != 2 || stock[0].Reserved != 0 {
		t.Errorf("got %+v, %v", stock, err)
	}
}

// foreignOrders sends orders through a service on a real broker. The producer sends plain
// JSON, each message twice. foreignOrders then waits until the metrics contain measure.
func foreignOrders(t *testing.T, kind, measure string, produce func(topic string, payloads ...string), change func(*config.Config)) {
	t.Helper()

	r := apptest.Start(t, change)
	r.ExpectFailures()
	r.Seed()

	var payloads []string

	for i := range 20 {
		payload := fmt.Sprintf(`{"order":{"id":"%s-%d","product_id":"product_1","quantity":1,"total_amount":9.99}}`, kind, i)
		payloads = append(payloads, payload, payload)
	}

	produce("orders.created", append(payloads, "nonsense")...)

	for i := range 20 {
		r.WaitForOrder(fmt.Sprintf("%s-%d", kind, i), "completed")
	}

	pgtest.Eventually(t, "the bad message is stopped", func() bool {
		entries, err := r.Failed.List(t.Context(), failed.Filter{Topic: "orders.created"}, 10)

		return err == nil && len(entries) > 0 && string(entries[0].Payload) == "nonsense" && strings.HasPrefix(entries[0].Origin, kind+":")
	})
	pgtest.Eventually(t, "what waits at the broker is measured", func() bool {
		return slices.ContainsFunc(scrape(t, r), func(line string) bool { return strings.HasPrefix(line, measure) })
	})
	r.Stop()
}

func TestTheServiceOnKafka(t *testing.T) {
	t.Parallel()

	address := brokertest.Address(t, brokertest.Kafka)

	var cfg broker.Config

	change := func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = strings.Split(address, ",")
		c.Broker.Kafka.Group = brokertest.Topic() // a separate consumer group
		c.Broker.Kafka.Prefix = c.Broker.Kafka.Group + "."
		c.Broker.Kafka.Partitions = 4
		cfg = c.Broker
	}

	foreignOrders(t, broker.Kafka, `millrace_partition_lag_messages{partition="3",topic="orders.created"} 0`, func(topic string, payloads ...string) {
		brokertest.ProduceKafka(t, cfg, cfg.Kafka.Prefix+topic, bare(payloads)...)
	}, change)
}

func bare(payloads []string) []brokertest.Foreign {
	messages := make([]brokertest.Foreign, len(payloads))
	for i, payload := range payloads {
		messages[i].Payload = []byte(payload)
	}

	return messages
}

func TestTheServiceOnRabbitMQ(t *testing.T) {
	t.Parallel()

	address := brokertest.Address(t, brokertest.RabbitMQ)

	var cfg broker.Config

	change := func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret(address)
		cfg = c.Broker
	}

	foreignOrders(t, broker.RabbitMQ, `millrace_backlog_messages{place="rabbitmq",topic="orders.created"} 0`, func(topic string, payloads ...string) {
		brokertest.ProduceRabbitMQ(t, cfg, topic, bare(payloads)...)
	}, change)
}

// An organization's brokers may use other names for the shop's topics.
func TestTheServiceUsesTheNamesOfTopicsAtItsBroker(t *testing.T) {
	t.Parallel()

	kafka, rabbit, unique := brokertest.Address(t, brokertest.Kafka), brokertest.Address(t, brokertest.RabbitMQ), brokertest.Topic()
	created, requested := unique+".orders.v1", unique+".payments.v2"

	var cfg broker.Config

	change := func(c *config.Config) {
		c.Broker.Kafka.Brokers, c.Broker.Kafka.Group = strings.Split(kafka, ","), unique
		c.Broker.RabbitMQ.URL = postgres.Secret(rabbit)
		c.Broker.Bind = []broker.Binding{
			{Topic: "orders.created", Broker: broker.Kafka, Name: created},
			{Topic: "payments.requested", Broker: broker.RabbitMQ, Name: requested},
		}
		cfg = c.Broker
	}

	foreignOrders(t, broker.Kafka, `millrace_partition_lag_messages{partition="0",topic="orders.created"} 0`, func(_ string, payloads ...string) {
		brokertest.ProduceKafka(t, cfg, created, bare(payloads)...)
	}, change)
}

func TestTwoReplicasApplyEachOrderOnce(t *testing.T) {
	t.Parallel()

	const orders = 300

	url := pgtest.URL(t)
	one, two := apptest.New(t, url), apptest.New(t, url)
	one.Run()
	two.Run()
	one.Seed()

	if _, err := one.Pool.Exec(t.Context(), `UPDATE stock SET supplied = 1000, available = 1000 WHERE product_id = 'product_1'`); err != nil {
		t.Fatal(err)
	}

	for i := range orders {
		publisher := one
		if i%2 == 0 {
			publisher = two
		}

		publisher.Publish("orders.created", fmt.Sprintf(`{"order":{"id":"o%d","product_id":"product_1","quantity":1,"total_amount":1}}`, i))

		switch i {
		case 100:
			pgtest.KillBackends(t, one.Pool) // lose all connections
		case 200:
			one.Stop() // then lose a replica
			one = two
		}
	}

	pgtest.Eventually(t, "all orders are completed", func() bool {
		return pgtest.Value[int](t, two.Pool, `SELECT count(*) FROM orders WHERE status = 'completed'`) == orders
	})

	stock, err := two.Inventory.List(t.Context(), "product_1")
	if err != nil || stock[0].Sold != orders || stock[0].Available != 1000-orders || stock[0].Reserved != 0 {
		t.Errorf("got %+v, %v", stock, err)
	}

	if entries, err := two.Failed.List(t.Context(), failed.Filter{}, 1); err != nil || len(entries) != 0 {
		t.Errorf("failed: %+v, %v", entries, err)
	}
}
