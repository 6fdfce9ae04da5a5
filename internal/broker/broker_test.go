package broker_test

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/brokertest"
	"github.com/millrace/millrace/internal/pgtest"
	"github.com/millrace/millrace/internal/postgres"
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
	withoutRaceDetector(t)

	server := newServer(t, "kafka.sh")
	surviveRestart(t, kafkaHarness("127.0.0.1:"+server.port), server)
}

func TestRestartOfRabbitMQ(t *testing.T) {
	t.Parallel()
	withoutRaceDetector(t)

	server := newServer(t, "rabbitmq.sh")
	surviveRestart(t, rabbitHarness("amqp://guest:guest@127.0.0.1:"+server.port+"/"), server)
}

func surviveRestart(t *testing.T, h brokertest.Harness, server *server) {
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
	server.do("kill")

	if err := conn.Publisher().Publish(topic, brokertest.NewMessage("k", "lost")); err == nil {
		t.Error("publishing to a dead broker succeeds")
	}

	server.do("start")
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

// server is a broker of the test's own.
type server struct {
	t      *testing.T
	script string
	dir    string
	port   string
}

func newServer(t *testing.T, script string) *server {
	t.Helper()

	path, err := filepath.Abs(filepath.Join("..", "..", "scripts", script))
	if err != nil {
		t.Fatal(err)
	}

	s := &server{t: t, script: path, dir: t.TempDir(), port: freePort(t)}
	s.do("start")
	t.Cleanup(func() { s.do("kill") })

	return s
}

func (s *server) do(action string) {
	s.t.Helper()

	cmd := exec.CommandContext(context.Background(), s.script, action, s.dir, s.port)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s %s: %v\n%s", s.script, action, err, out)
	}
}

// freePort returns a port whose successor is likely free too.
func freePort(t *testing.T) string {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	return port
}
