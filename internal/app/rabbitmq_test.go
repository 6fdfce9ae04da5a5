package app_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// newRabbitMQOfOthers starts a RabbitMQ on which others have declared the queue
// orders.created, which drops messages that are returned twice, and on which the account
// "shop" cannot create the queues of user topics. admin holds an administrator's
// settings.
func newRabbitMQOfOthers(t *testing.T) (server *brokertest.Server, admin broker.Config) {
	t.Helper()

	server = brokertest.NewServer(t, "rabbitmq.sh")
	admin.RabbitMQ.URL = postgres.Secret("amqp://guest:guest@127.0.0.1:" + server.Port + "/")

	brokertest.DeclareRabbitMQ(t, admin, "orders.created", map[string]any{
		"x-queue-type": "quorum", "x-delivery-limit": int64(1), "x-message-ttl": int64(3_600_000),
	})
	server.Do("ctl", "add_user", "shop", "secret")
	server.Do("ctl", "set_permissions", "shop", ".*", ".*", "^(millrace|orders|payments|inventory|notifications|analytics).*")

	return server, admin
}

// A queue that the account cannot create affects only its consumer, and an alarm
// affects only publishing. The service says what is wrong and what to do, and still
// stops in time.
func TestRabbitMQThatRefusesIsReported(t *testing.T) {
	t.Parallel()

	server, admin := newRabbitMQOfOthers(t)
	database := pgtest.URL(t)
	start := func() *apptest.Service {
		s := apptest.New(t, database, func(c *config.Config) {
			c.Broker.Kind = broker.RabbitMQ
			c.Broker.RabbitMQ.URL = postgres.Secret("amqp://shop:secret@127.0.0.1:" + server.Port + "/")
			c.Broker.RabbitMQ.Lanes = 8
		})
		s.Run()

		return s
	}
	s := start()

	reported(t, s, expected{
		"account.create", 503, health.Unready,
		"not receiving messages on user.created: the broker refuses a topic (user.created): queue user.created does not exist", "create queue user.created", "",
	})

	s.Seed()
	brokertest.ProduceRabbitMQ(t, admin, "orders.created", brokertest.Foreign{Payload: []byte(guide(t, "orders.created"))})
	pgtest.Eventually(t, "the other consumers work", func() bool {
		return apptest.Value[int](s, `SELECT count(*)::int FROM orders WHERE status = 'completed'`) == 1
	})

	server.Do("ctl", "set_permissions", "shop", ".*", ".*", ".*")
	recovered(t, s)

	s = pauseAboveDeliveryLimit(t, s, admin, start)

	server.Do("ctl", "set_vm_memory_high_watermark", "absolute", "1MB")
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)
	reported(t, s, expected{"rabbitmq", 503, health.Unready, "is blocked: the broker is not accepting messages: rabbitmq has raised an alarm: low on memory", "memory or disk space", ""})

	started := time.Now()

	s.Stop()

	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// pauseAboveDeliveryLimit pauses a consumer more times than its queue delivers a message,
// while messages arrive, and restarts the service during the last pause.
func pauseAboveDeliveryLimit(t *testing.T, s *apptest.Service, admin broker.Config, start func() *apptest.Service) *apptest.Service {
	t.Helper()

	by := activity.Actor{Who: "ann", Why: "fixing the import"}

	const pauses = 3
	for i := range pauses {
		if _, err := s.Router.Pause(t.Context(), "fulfilment.place", 0, by); err != nil {
			t.Fatal(err)
		}

		brokertest.ProduceRabbitMQ(t, admin, "orders.created", brokertest.Foreign{
			Payload: fmt.Appendf(nil, `{"order":{"id":"paused-%d","product_id":"product_1","quantity":1,"total_amount":1}}`, i),
		})
		reported(t, s, expected{"fulfilment.place", 200, health.Degraded, "paused", "millrace consumers resume", ""})

		if i == pauses-1 {
			s.Stop() // returns the messages it has in hand
			s = start()
		}

		if _, err := s.Router.Resume(t.Context(), "fulfilment.place", by); err != nil {
			t.Fatal(err)
		}
	}

	pgtest.Eventually(t, "every order that arrived during a pause is placed", func() bool {
		return apptest.Value[int](s, `SELECT count(*)::int FROM orders WHERE id LIKE 'paused-%'`) == pauses
	})
	recovered(t, s)

	return s
}

// A wrong password is not reported as if the broker were down.
func TestAWrongPasswordIsReported(t *testing.T) {
	t.Parallel()

	address, err := url.Parse(brokertest.Address(t, brokertest.RabbitMQ))
	if err != nil {
		t.Fatal(err)
	}

	address.User = url.UserPassword(address.User.Username(), "wrong")
	s := apptest.New(t, pgtest.URL(t), func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret(address.String())
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)

	go func() { done <- s.Service.Run(ctx, func() {}) }()

	pgtest.Eventually(t, "the service listens", func() bool { return s.HTTPAddr() != "" })
	reported(t, s, expected{
		"rabbitmq", 503, health.Unready, "authentication failed: wrong user \"guest\" or wrong password",
		"correct the user and password in broker.rabbitmq.url", "",
	})
	stop()

	if err := <-done; err != nil {
		t.Error(err)
	}
}
