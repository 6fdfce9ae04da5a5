package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// The service reports a topic that keeps records for longer than the inbox does. It does
// not apply a record that the inbox may have forgotten until an operator says so.
func TestARecordThatTheInboxMayHaveForgottenIsStopped(t *testing.T) {
	t.Parallel()

	const day = 24 * time.Hour

	var cfg broker.Config

	s := apptest.Start(t, func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = strings.Split(brokertest.Address(t, brokertest.Kafka), ",")
		c.Broker.Kafka.Group, c.Broker.Kafka.Partitions = brokertest.Topic(), 1
		c.Broker.Kafka.Prefix = c.Broker.Kafka.Group + "."
		cfg = c.Broker
		brokertest.CreateKafkaTopic(t, cfg, cfg.Kafka.Prefix+"orders.created", map[string]string{"retention.ms": fmt.Sprint((30 * day).Milliseconds())})
	})
	s.ExpectFailures()
	s.Seed()

	if _, err := s.Pool.Exec(t.Context(), `UPDATE goose_db_version SET tstamp = tstamp - interval '30 days'`); err != nil {
		t.Fatal(err)
	}

	produce := func(order string, at time.Time, headers map[string]any) {
		payload := fmt.Sprintf(`{"order":{"id":%q,"product_id":"product_1","quantity":1,"total_amount":9.99}}`, order)
		brokertest.ProduceKafka(t, cfg, cfg.Kafka.Prefix+"orders.created", brokertest.Foreign{Key: order, Payload: []byte(payload), Headers: headers, At: at})
	}
	remembered := map[string]any{event.HeaderID: "1"}

	produce("applied_late", time.Now(), remembered)
	s.WaitForOrder("applied_late", "completed")
	produce("applied_late", time.Now().Add(-8*day), remembered) // as if it had been read from a backlog
	produce("old", time.Now().Add(-8*day), nil)
	produce("new", time.Now().Add(-6*day), nil)
	s.WaitForOrder("new", "completed")

	onlyTheOldOneIsStopped(t, s)
	pgtest.Eventually(t, "the topic is named", func() bool {
		code, troubles := readiness(t, s)
		got := troubles["inbox.retention"]

		return code == http.StatusOK && got.Level == health.Note && strings.Contains(got.Remedy, "raise inbox.retention") &&
			strings.Contains(got.Reason, "orders.created (kafka, for 720h0m0s). Older ones are stopped")
	})

	if n := apptest.Value[int](s, `SELECT count(*)::int FROM orders WHERE id = 'old'`); n != 0 {
		t.Error("the old record was applied")
	}

	if _, err := s.Failed.Requeue(t.Context(), failed.Filter{}, activity.Actor{Who: "op"}, failed.Pace{}, s.Router.Check); err != nil {
		t.Fatal(err)
	}

	s.WaitForOrder("old", "completed")
}

func onlyTheOldOneIsStopped(t *testing.T, s *apptest.Service) {
	t.Helper()

	var entries []failed.Entry

	pgtest.Eventually(t, "the old record is stopped", func() (done bool) {
		var err error
		entries, err = s.Failed.List(t.Context(), failed.Filter{Topic: "orders.created"}, 10)

		return err == nil && len(entries) > 0
	})

	if e := entries[0]; len(entries) != 1 || e.Key != "old" || e.Reason != event.ReasonForgotten || !strings.Contains(e.Error, "inbox.retention (168h0m0s)") {
		t.Errorf("got %+v", entries)
	}
}
