package app_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/brokertest"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/pgtest"
	"github.com/millrace/millrace/internal/postgres"
)

// replica is a running service.
type replica struct {
	*app.Service

	stop func()
}

// start runs a service on the database at url.
func start(t *testing.T, url string, change func(*config.Config)) *replica {
	t.Helper()

	cfg := config.Default()
	cfg.Postgres.URL = postgres.Secret(url)
	cfg.HTTP.Addr = freeAddr(t)

	if change != nil {
		change(&cfg)
	}

	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}

	service, release, err := millrace.New(cfg, pgtest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)

	go func() { done <- service.Run(ctx, func() { close(ready) }) }()

	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("the service did not start: %v", err)
	}

	stop := sync.OnceFunc(func() {
		cancel()

		if err := <-done; err != nil {
			t.Errorf("the service did not drain: %v", err)
		}

		release()
	})
	t.Cleanup(stop)

	return &replica{Service: service, stop: stop}
}

func freeAddr(t *testing.T) string {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	return listener.Addr().String()
}

func (r *replica) publish(t *testing.T, topic, payload string) {
	t.Helper()

	key, err := r.Check(topic, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}

	message := event.Message{ID: event.NewID(), Topic: topic, Key: key, Payload: []byte(payload)}

	pgtest.Eventually(t, "the message is published", func() bool {
		err := r.Publish(t.Context(), []event.Message{message})
		if err != nil && !postgres.IsUnavailable(err) {
			t.Fatal(err)
		}

		return err == nil
	})
}

func (r *replica) seed(t *testing.T) {
	t.Helper()

	if err := r.Inventory.Seed(t.Context(), map[string]int64{"product_1": 100, "product_2": 50, "product_3": 25}); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) waitFor(t *testing.T, id, status string) {
	t.Helper()
	pgtest.Eventually(t, id+" is "+status, func() bool {
		details, err := r.Orders.Show(t.Context(), id)

		return err == nil && string(details.Status) == status
	})
}

func TestAnOrderGoesFromCreatedToCompleted(t *testing.T) {
	t.Parallel()

	r := start(t, pgtest.URL(t), nil)
	r.seed(t)
	r.publish(t, "orders.created", `{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}`)
	r.publish(t, "orders.created", `{"order":{"id":"free","product_id":"product_1","quantity":1,"total_amount":0}}`)
	r.publish(t, "orders.created", `{"order":{"id":"many","product_id":"product_3","quantity":26,"total_amount":1}}`)
	r.waitFor(t, "order_123", "completed")
	r.waitFor(t, "free", "payment_failed")
	r.waitFor(t, "many", "inventory_unavailable")

	stock, err := r.Inventory.List(t.Context(), "product_1")
	if err != nil || stock[0].Available != 98 || stock[0].Sold != 2 || stock[0].Reserved != 0 {
		t.Errorf("got %+v, %v", stock, err)
	}
}

// foreignOrders drives the pipeline of a service on a real broker by a
// producer that sends nothing but JSON, each message twice.
func foreignOrders(t *testing.T, kind string, produce func(topic string, payloads ...string), change func(*config.Config)) {
	t.Helper()

	r := start(t, pgtest.URL(t), change)
	r.seed(t)

	var payloads []string

	for i := range 20 {
		payload := fmt.Sprintf(`{"order":{"id":"%s-%d","product_id":"product_1","quantity":1,"total_amount":9.99}}`, kind, i)
		payloads = append(payloads, payload, payload)
	}

	produce("orders.created", append(payloads, "nonsense")...)

	for i := range 20 {
		r.waitFor(t, fmt.Sprintf("%s-%d", kind, i), "completed")
	}

	pgtest.Eventually(t, "the bad message is poisoned", func() bool {
		entries, err := r.Poison.List(t.Context(), "orders.created", 10)

		return err == nil && len(entries) > 0 && string(entries[0].Payload) == "nonsense" && strings.HasPrefix(entries[0].Origin, kind+":")
	})
	r.stop()
}

func TestTheServiceOnKafka(t *testing.T) {
	t.Parallel()

	address := os.Getenv("MILLRACE_TEST_KAFKA_BROKERS")
	if address == "" {
		t.Fatal("MILLRACE_TEST_KAFKA_BROKERS is not set: run `make test`")
	}

	var cfg broker.Config

	change := func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = strings.Split(address, ",")
		c.Broker.Kafka.Group = brokertest.Topic() // a group of its own
		c.Broker.Kafka.Partitions = 4
		cfg = c.Broker
	}

	foreignOrders(t, broker.Kafka, func(topic string, payloads ...string) {
		brokertest.ProduceKafka(t, cfg, topic, bare(payloads)...)
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

	address := os.Getenv("MILLRACE_TEST_RABBITMQ_URL")
	if address == "" {
		t.Fatal("MILLRACE_TEST_RABBITMQ_URL is not set: run `make test`")
	}

	var cfg broker.Config

	change := func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret(address)
		c.Broker.RabbitMQ.Consumers = 8
		cfg = c.Broker
	}

	foreignOrders(t, broker.RabbitMQ, func(topic string, payloads ...string) {
		brokertest.ProduceRabbitMQ(t, cfg, topic, bare(payloads)...)
	}, change)
}

func TestTwoReplicasShareTheWorkOnceInEffect(t *testing.T) {
	t.Parallel()

	const orders = 300

	url := pgtest.URL(t)
	one, two := start(t, url, nil), start(t, url, nil)
	one.seed(t)

	if _, err := one.Pool.Exec(t.Context(), `UPDATE stock SET supplied = 1000, available = 1000 WHERE product_id = 'product_1'`); err != nil {
		t.Fatal(err)
	}

	for i := range orders {
		publisher := one
		if i%2 == 0 {
			publisher = two
		}

		publisher.publish(t, "orders.created", fmt.Sprintf(`{"order":{"id":"o%d","product_id":"product_1","quantity":1,"total_amount":1}}`, i))

		switch i {
		case 100:
			pgtest.KillBackends(t, one.Pool) // every connection is lost
		case 200:
			one.stop() // and then a replica
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

	if entries, err := two.Poison.List(t.Context(), "", 1); err != nil || len(entries) != 0 {
		t.Errorf("poisoned: %+v, %v", entries, err)
	}
}
