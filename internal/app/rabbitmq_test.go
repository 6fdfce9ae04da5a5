package app_test

import (
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// newRabbitMQOfOthers starts a RabbitMQ where others have declared the queue
// orders.created and where the account "shop" may not create the queues of users. admin
// is how an administrator connects.
func newRabbitMQOfOthers(t *testing.T) (server *brokertest.Server, admin broker.Config) {
	t.Helper()

	server = brokertest.NewServer(t, "rabbitmq.sh")
	admin.RabbitMQ.URL = postgres.Secret("amqp://guest:guest@127.0.0.1:" + server.Port + "/")

	brokertest.DeclareRabbitMQ(t, admin, "orders.created", map[string]any{"x-message-ttl": int64(3_600_000)})
	server.Do("ctl", "add_user", "shop", "secret")
	server.Do("ctl", "set_permissions", "shop", ".*", ".*", "^(millrace|orders|payments|inventory|notifications|analytics).*")

	return server, admin
}

// A queue that the account may not create affects only its consumer, and an alarm
// affects only publishing. The service says what is wrong and what to do, and still
// stops in time.
func TestRabbitMQThatRefusesIsReported(t *testing.T) {
	t.Parallel()

	server, admin := newRabbitMQOfOthers(t)
	s := apptest.Start(t, func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret("amqp://shop:secret@127.0.0.1:" + server.Port + "/")
		c.Broker.RabbitMQ.Lanes = 8
	})

	reported(t, s, expected{
		"account.create", 503, health.Unready,
		"not receiving messages of user.created: the broker refuses a topic (user.created): queue user.created does not exist", "create queue user.created", "",
	})

	s.Seed()
	brokertest.ProduceRabbitMQ(t, admin, "orders.created", brokertest.Foreign{Payload: []byte(guide(t, "orders.created"))})
	pgtest.Eventually(t, "the other consumers work", func() bool {
		return apptest.Value[int](s, `SELECT count(*)::int FROM orders WHERE status = 'completed'`) == 1
	})

	server.Do("ctl", "set_permissions", "shop", ".*", ".*", ".*")
	recovered(t, s)

	server.Do("ctl", "set_vm_memory_high_watermark", "absolute", "1MB")
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)
	reported(t, s, expected{"rabbitmq", 503, health.Unready, "is blocked: the broker is not accepting messages: rabbitmq has raised an alarm: low on memory", "memory or disk space", ""})

	started := time.Now()

	s.Stop()

	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("stopping took %s", took)
	}
}
