package rabbitmq_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/broker/rabbitmq"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Somebody else deletes a queue and immediately declares it again. RabbitMQ 3.10 does not
// tell the queue's consumer, and sends it nothing from then on.
func TestAQueueThatIsDeletedAndDeclaredAgainIsConsumed(t *testing.T) {
	t.Parallel()

	must := func(err error) {
		t.Helper()

		if err != nil {
			t.Fatal(err)
		}
	}

	cfg, queue := rabbitmq.DefaultConfig(), brokertest.Topic()
	cfg.URL = postgres.Secret(brokertest.Address(t, brokertest.RabbitMQ))

	d := rabbitmq.New(cfg, pgtest.Logger(t))
	d.RenewAfter(time.Second)
	must(d.Connect(t.Context(), []driver.Topic{{Name: queue, Consumed: true}}))

	subscriber, err := d.Subscriber(queue, func([]byte) string { return "" })
	must(err)
	t.Cleanup(func() { must(subscriber.Close()); must(d.Close()) })

	received, err := subscriber.Subscribe(t.Context(), queue)
	must(err)
	pgtest.Eventually(t, "the queue is consumed", func() bool {
		list, err := d.Backlogs(t.Context(), []string{queue})

		return err == nil && list[0].Subscriptions == 1
	})

	conn, err := amqp091.Dial(string(cfg.URL))
	must(err)
	defer conn.Close()

	other, err := conn.Channel()
	must(err)
	_, err = other.QueueDelete(queue, false, false, false)
	must(err)
	_, err = other.QueueDeclare(queue, true, false, false, false, amqp091.Table{"x-queue-type": "quorum"})
	must(err)
	must(other.PublishWithContext(t.Context(), "", queue, true, false, amqp091.Publishing{Body: []byte("1")}))

	var first *message.Message

	pgtest.Eventually(t, "the message arrives", func() bool {
		select {
		case first = <-received:
		default:
		}

		return first != nil
	})
	first.Ack()
}
