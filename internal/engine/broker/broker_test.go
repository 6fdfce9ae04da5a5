package broker_test

import (
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestEmbedded(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, brokertest.Harness{Config: broker.DefaultConfig()})
}

func TestKafka(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, kafkaHarness(brokertest.Address(t, brokertest.Kafka)))
}

func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, rabbitHarness(brokertest.Address(t, brokertest.RabbitMQ)))
}

func kafkaHarness(address string) brokertest.Harness {
	cfg := broker.DefaultConfig()
	cfg.Kind = broker.Kafka
	cfg.Kafka.Brokers = strings.Split(address, ",")
	cfg.Kafka.Partitions = 4 // a test needs no more

	return brokertest.Harness{Config: cfg, Produce: brokertest.ProduceKafka, Durable: true, StableIDs: true}
}

func rabbitHarness(address string) brokertest.Harness {
	cfg := broker.DefaultConfig()
	cfg.Kind = broker.RabbitMQ
	cfg.RabbitMQ.URL = postgres.Secret(address)
	cfg.RabbitMQ.Consumers, cfg.RabbitMQ.Lanes = 4, 8

	return brokertest.Harness{Config: cfg, Produce: brokertest.ProduceRabbitMQ, Durable: true}
}

// The libraries' reconnecting is full of data races of their own, so that these
// two run without the race detector: `make test` runs them apart.

func TestRestartOfKafka(t *testing.T) {
	t.Parallel()
	brokertest.WithoutRaceDetector(t)

	server := brokertest.NewServer(t, "kafka.sh")
	surviveRestart(t, kafkaHarness("127.0.0.1:"+server.Port), server)
}

func TestRestartOfRabbitMQ(t *testing.T) {
	t.Parallel()
	brokertest.WithoutRaceDetector(t)

	server := brokertest.NewServer(t, "rabbitmq.sh")
	surviveRestart(t, rabbitHarness("amqp://guest:guest@127.0.0.1:"+server.Port+"/"), server)
}

func surviveRestart(t *testing.T, h brokertest.Harness, server *brokertest.Server) {
	t.Helper()

	topic := brokertest.Topic()
	conn := h.Open(t, topic)
	empty := 0
	received := brokertest.Consume(t, conn, topic, func(msg *message.Message) {
		if len(msg.Payload) == 0 {
			empty++
		}

		msg.Ack()
	})

	if err := conn.Publisher().Publish(topic, brokertest.NewMessage("k", "before")); err != nil {
		t.Fatal(err)
	}

	received.Wait(t, 1)
	server.Do("kill")

	if err := conn.Publisher().Publish(topic, brokertest.NewMessage("k", "lost")); err == nil {
		t.Error("publishing to a dead broker succeeds")
	}

	server.Do("start")
	pgtest.Eventually(t, "publishing works again", func() bool {
		return conn.Publisher().Publish(topic, brokertest.NewMessage("k", "after")) == nil
	})
	pgtest.Eventually(t, "the consumer goes on", func() bool {
		all := received.All()

		return string(all[len(all)-1].Payload) == "after"
	})

	if empty > 0 {
		t.Errorf("%d phantom messages came", empty)
	}

	if err := conn.Close(); err != nil {
		t.Log(err) // connections that died earlier may say so
	}
}
