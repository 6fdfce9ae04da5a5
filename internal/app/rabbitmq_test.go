package app_test

import (
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// newRabbitMQOfOthers starts RabbitMQ with an account "shop", which may not create the
// queues of users, and with the queue orders.created as others have declared it. The
// channel is that of an administrator.
func newRabbitMQOfOthers(t *testing.T) (server *brokertest.Server, channel *amqp091.Channel) {
	t.Helper()

	server = brokertest.NewServer(t, "rabbitmq.sh")

	conn, err := amqp091.Dial("amqp://guest:guest@127.0.0.1:" + server.Port + "/")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = conn.Close() })

	channel, err = conn.Channel()
	if err != nil {
		t.Fatal(err)
	}

	if _, err := channel.QueueDeclare("orders.created", true, false, false, false, amqp091.Table{"x-message-ttl": int64(3_600_000)}); err != nil {
		t.Fatal(err)
	}

	server.Do("ctl", "add_user", "shop", "secret")
	server.Do("ctl", "set_permissions", "shop", ".*", ".*", "^(millrace|orders|payments|inventory|notifications|analytics).*")

	return server, channel
}

// A queue that the account may not create concerns its consumer alone, and an alarm the
// messages to publish; the service says what and what to do, and ends in time.
func TestRabbitMQThatRefusesIsReported(t *testing.T) {
	t.Parallel()

	server, channel := newRabbitMQOfOthers(t)
	s := apptest.Start(t, func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret("amqp://shop:secret@127.0.0.1:" + server.Port + "/")
		c.Broker.RabbitMQ.Lanes = 8
	})

	reported(t, s, expected{
		"account.create", 503, health.Unready,
		"no messages of user.created arrive: the broker refuses a topic (user.created): queue user.created does not exist", "create queue user.created", "",
	})

	s.Seed()

	if err := channel.Publish("", "orders.created", false, false, amqp091.Publishing{Body: []byte(guide(t, "orders.created"))}); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the other consumers work", func() bool {
		return apptest.Value[int](s, `SELECT count(*)::int FROM orders WHERE status = 'completed'`) == 1
	})

	server.Do("ctl", "set_permissions", "shop", ".*", ".*", ".*")
	recovered(t, s)

	server.Do("ctl", "set_vm_memory_high_watermark", "absolute", "1MB")
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)
	reported(t, s, expected{"rabbitmq", 503, health.Unready, "is blocked: the broker accepts no messages: rabbitmq has raised an alarm: low on memory", "memory or disk space", ""})

	started := time.Now()

	s.Stop()

	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("stopping took %s", took)
	}
}
