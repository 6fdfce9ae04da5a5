package app_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestFastStreamExchangesMessagesOnKafka(t *testing.T) {
	t.Parallel()

	// Use a separate server, as below.
	address := "127.0.0.1:" + brokertest.NewServer(t, "kafka.sh").Port

	exchange(t, "kafka", address, func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = []string{address}
		c.Broker.Kafka.Partitions = 4
	})
}

func TestFastStreamExchangesMessagesOnRabbitMQ(t *testing.T) {
	t.Parallel()

	// Use a separate server: on a shared one, another test's service would take some
	// of the messages.
	server := brokertest.NewServer(t, "rabbitmq.sh")
	address := "amqp://guest:guest@127.0.0.1:" + server.Port + "/"

	exchange(t, "rabbitmq", address, func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret(address)
		c.Broker.RabbitMQ.Lanes = 8
	})
}

// exchange runs a FastStream service alongside Millrace. They share only topics and
// JSON.
func exchange(t *testing.T, kind, address string, change func(*config.Config)) {
	t.Helper()

	python, err := exec.Command("../../scripts/python.sh").Output()
	if err != nil {
		t.Fatalf("installing FastStream: %v", err)
	}

	s := apptest.Start(t, change)
	s.ExpectFailures() // other tests send nonsense to the same topics
	s.Seed()

	name := brokertest.Topic()

	var errors bytes.Buffer

	cmd := exec.Command(strings.TrimSpace(string(python)), "testdata/faststream/exchange.py", kind, address, name)
	cmd.Stderr = &errors

	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("FastStream: %v\n%s%s", err, out, errors.String())
	}

	got := map[string]map[string]any{}

	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var line struct {
			Topic string
			Body  map[string]any
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}

		if got[line.Topic] == nil { // the first per topic
			got[line.Topic] = line.Body
		}
	}

	want := map[string]map[string]any{
		"notifications":        {"user_id": name + "-user", "content": "Welcome Alice!"},
		"user.profile.updated": {"user_id": name + "-user", "changes": map[string]any{"city": "Berlin"}},
		"payments.requested":   {"order_id": name + "-order", "amount": 99.99, "currency": "USD"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("FastStream received: %s", diff)
	}

	s.WaitForOrder(name+"-order", "completed")
	pgtest.Eventually(t, "FastStream's notification is sent", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE user_id = $1 AND channel = 'log' AND answer = 'logged'`, name+"-user") == 1
	})

	if n := apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE payload::text LIKE '%' || $1 || '%'`, name); n != 0 {
		t.Errorf("%d messages failed", n)
	}
}
