package app_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// These tests are rows of the table "What the guide shows" about how the guide's
// service is assembled, tested and operated.

func TestGuideConfig(t *testing.T) {
	t.Parallel()

	// The settings that the guide's ConfigService keeps in a dictionary.
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "postgres: {url: 'postgresql://localhost/myapp'}\nbroker: {kind: kafka, kafka: {brokers: ['localhost:9092']}}\nlog: {level: debug}\n"

	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	cfg, err := config.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}

	if err := cfg.Validate(); err != nil || cfg.Broker.Kafka.Brokers[0] != "localhost:9092" || cfg.Log.Level != "debug" || cfg.Postgres.URL != "postgresql://localhost/myapp" {
		t.Errorf("got %+v, %v", cfg, err)
	}

	// The guide's get returns None for an unknown key; here it is an error.
	if err := os.WriteFile(file, []byte("broker: {kafka_url: 'localhost:9092'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	if _, err := config.Load(file, nil); err == nil || !strings.Contains(err.Error(), "kafka_url") {
		t.Errorf("got %v", err)
	}
}

func TestGuideModules(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.URL(t)) // assembled but not running

	var consumed []string
	for _, route := range s.Router.Routes() {
		consumed = append(consumed, route.Topic)
	}

	// The topics that the guide subscribes to.
	for _, topic := range []string{
		"user.created", "user.updated", "analytics.track", "user.events", "notifications", "orders.created", "payments.requested", "orders.completed",
	} {
		if !slices.Contains(consumed, topic) {
			t.Errorf("%s is not consumed", topic)
		}
	}

	if !slices.Contains(s.Operator.Topics(), "user.profile.updated") {
		t.Error("user.profile.updated has not been published")
	}
}

func TestGuideServicesDirectly(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.URL(t)) // no broker, no messages
	s.Seed()

	// assert inventory_service.check_availability("product_1", 10) == True
	// assert inventory_service.check_availability("product_1", 1000) == False
	err := postgres.InTx(t.Context(), s.Pool, func(tx pgx.Tx) error {
		demands := []inventory.Demand{{"product_1": 10}, {"product_1": 1000}}

		available, err := s.Inventory.Available(t.Context(), tx, demands)
		if err != nil {
			return err
		}

		if short := inventory.Allocate(available, demands); short[0] != nil || short[1] == nil || short[1].Available != 90 {
			t.Errorf("got %+v", short)
		}

		writes := &pgx.Batch{}
		s.Inventory.Reserve(writes, demands[:1])

		return tx.SendBatch(t.Context(), writes).Close()
	})
	if err != nil {
		t.Error(err)
	}

	// assert order["status"] == "created"
	o, err := order.Order{ID: "test_order"}.Apply(order.Created{Lines: []order.Line{{ProductID: "product_2", Quantity: 1}}})
	if err != nil || o.Status != order.StatusCreated || o.ID != "test_order" {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestGuideOrderWithoutStock(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()
	s.Publish("orders.created", `{"order": {"id": "order_124", "product_id": "product_3", "quantity": 1000, "total_amount": 99.99}}`)

	if got := s.Messages("orders.rejected", 1)[0].Fields(); got["order_id"] != "order_124" || got["reason"] != "inventory_unavailable" {
		t.Errorf("got %v", got)
	}

	s.WaitForOrder("order_124", "inventory_unavailable")
}

func TestGuideOrderPaymentFails(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()
	s.Publish("orders.created", `{"order": {"id": "order_125", "product_id": "product_3", "quantity": 1, "total_amount": 0}}`)

	if got := s.Messages("orders.rejected", 1)[0].Fields(); got["order_id"] != "order_125" || got["reason"] != "payment_failed" {
		t.Errorf("got %v", got)
	}

	s.WaitForOrder("order_125", "payment_failed")

	// The guide never releases its reservation.
	if n := apptest.Value[int](s, `SELECT available::int FROM stock WHERE product_id = 'product_3'`); n != 25 {
		t.Errorf("%d are available, expected 25", n)
	}
}

func TestGuideValidation(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.URL(t))

	for topic, c := range map[string]struct{ payload, says string }{
		"user.events":     {`{"name": "Bob"}`, "action: is missing, expected create or update; user_id: is missing"},
		"analytics.track": {`{"user_id": "user_1"}`, "event: is missing, expected a name of 1 to 200 characters; timestamp: is missing"},
		"user.created":    {`{"user": {"id": "user_1", "name": 7}}`, "user.name: is a JSON number, expected a string"},
	} {
		if _, err := s.Operator.CheckPayload(topic, []byte(c.payload)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, expected %q", topic, err, c.says)
		}
	}
}

func TestGuideIdempotency(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	m := event.Message{ID: event.NewID(), Topic: "user.created", Key: "user_1", Payload: []byte(guide(t, "user.created"))}

	for range 3 {
		s.PublishMessage(m)
	}

	s.Messages("user.created", 3)
	s.WaitUntilIdle()

	if got := history(t, s, "user_1"); got != "UserCreated" {
		t.Errorf("got %s", got)
	}

	if n := apptest.Value[int](s, `SELECT count(*) FROM notifications`); n != 1 {
		t.Errorf("%d e-mails were sent", n)
	}
}

func TestGuideDeadLetters(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.ExpectFailures()
	s.PublishMessage(event.Message{Topic: "user.created", Payload: []byte(`{"user": `), Headers: event.Headers{"from": "somewhere"}})
	pgtest.Eventually(t, "the message is stored unchanged, with the reason", func() bool {
		return apptest.Value[int](s, `
			SELECT count(*) FROM failed_messages
			WHERE payload = '{"user": ' AND headers ->> 'from' = 'somewhere' AND error LIKE 'user: not valid JSON at byte 9%'`) == 1
	})
}

func TestGuideMonitoring(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("user.created", guide(t, "user.created"))
	s.Messages("notifications", 1)

	_, text := page(t, s, "/metrics")

	for _, line := range []string{`millrace_outbox_published_total{topic="notifications"} 1`, "millrace_outbox_oldest_age_seconds", `millrace_handle_seconds_count{consumer="account.create"} 1`} {
		if !strings.Contains(text, line) {
			t.Errorf("/metrics lacks %s: %s", line, text)
		}
	}
}

// The guide's services keep users, orders and events in dictionaries.
func TestGuideNothingIsKeptInMemoryAlone(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	for run, c := range []struct{ topic, want string }{
		{"user.created", "UserCreated"}, {"user.updated", "UserCreated UserEmailUpdated UserPropertiesUpdated"},
	} {
		s := apptest.New(t, url)
		s.Run()
		s.Publish(c.topic, guide(t, c.topic))
		s.Messages("notifications", 1)

		if got := history(t, s, "user_1"); got != c.want {
			t.Errorf("run %d: got %s, expected %s", run+1, got, c.want)
		}

		s.Stop()
	}
}
