package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
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

// readiness requests /readyz. It returns the troubles by name.
func readiness(t *testing.T, s *apptest.Service) (status int, troubles map[string]health.Trouble) {
	t.Helper()

	status, body := page(t, s, "/readyz")

	var answer struct{ Troubles []health.Trouble }
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}

	troubles = map[string]health.Trouble{}
	for _, trouble := range answer.Troubles {
		troubles[trouble.Name] = trouble
	}

	return status, troubles
}

// onKafkaAndRabbitMQ binds user.events to Kafka and notifications to RabbitMQ.
func onKafkaAndRabbitMQ(t *testing.T, rabbitPort string) func(*config.Config) {
	t.Helper()

	return func(c *config.Config) {
		c.Broker.Bind = []broker.Binding{{Topic: "user.events", Broker: broker.Kafka}, {Topic: "notifications", Broker: broker.RabbitMQ}}
		c.Broker.Kafka.Brokers = []string{brokertest.Address(t, brokertest.Kafka)}
		c.Broker.Kafka.Group, c.Broker.Kafka.Partitions = brokertest.Topic(), 16
		c.Broker.Kafka.Prefix = c.Broker.Kafka.Group + "."
		c.Broker.RabbitMQ.URL = postgres.Secret("amqp://guest:guest@127.0.0.1:" + rabbitPort + "/")
		c.Broker.RabbitMQ.Lanes = 8
	}
}

func TestRestartOfRabbitMQLeavesKafkaAlone(t *testing.T) {
	t.Parallel()

	const during = 2100 // more than the relay's in-flight limit

	rabbit := brokertest.NewServer(t, "rabbitmq.sh")

	var cfg config.Config

	s := apptest.Start(t, onKafkaAndRabbitMQ(t, rabbit.Port), func(c *config.Config) { cfg = *c })
	created := time.Now()
	prefix := brokertest.Topic()
	produce := func(from, to int) {
		var messages []brokertest.Foreign
		for n := from; n < to; n++ {
			id := fmt.Sprint(prefix, "-", n)
			messages = append(messages, brokertest.Foreign{Key: id, Payload: fmt.Appendf(nil,
				`{"userId":"%s","userName":"N","email":"n@example.com","action":"create"}`, id)})
		}

		brokertest.ProduceKafka(t, cfg.Broker, cfg.Broker.Kafka.Prefix+"user.events", messages...)
	}
	count := func(sql string) int { return apptest.Value[int](s, sql, prefix+"-%") }
	users := func() int { return count(`SELECT count(*) FROM events WHERE stream LIKE 'user-' || $1`) }
	notified := func() int { return count(`SELECT count(*) FROM notifications WHERE user_id LIKE $1`) }

	produce(0, 1)
	pgtest.Eventually(t, "the first user is notified", func() bool { return notified() == 1 })

	// RabbitMQ may lose a quorum queue if it is killed within half a second of creating it.
	pgtest.Eventually(t, "the queue has reached the disk", func() bool { return time.Since(created) > 2*time.Second })
	rabbit.Do("kill")
	produce(1, during)
	pgtest.Eventually(t, "users continue to be processed", func() bool { return users() == during })

	if n := notified(); n != 1 {
		t.Errorf("%d users were notified without a broker", n)
	}

	pgtest.Eventually(t, "readyz names the broker and the consumer that needs it, and no other", func() bool {
		status, troubles := readiness(t, s)

		return status == http.StatusServiceUnavailable && troubles["rabbitmq"].Level == health.Unready &&
			troubles["notification.route"].Because == "rabbitmq" && troubles["kafka"].Name == "" && troubles["account.legacy"].Name == ""
	})

	rabbit.Do("start")
	pgtest.Eventually(t, "all users are notified", func() bool { return notified() == during })

	if n := apptest.Value[int](s, `SELECT count(*) FROM failed_messages`); n != 0 {
		t.Errorf("%d messages failed", n)
	}
}
