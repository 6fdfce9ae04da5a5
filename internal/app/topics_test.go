package app_test

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// A setting for a topic that does not exist would do nothing.
func TestAServiceRefusesSettingsOfUnknownTopics(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	for want, change := range map[string]func(*config.Config){
		"consumer.per_topic: there is no topic orders.creatd": func(c *config.Config) {
			c.Consumer.PerTopic = []consumer.TopicConfig{{Topic: "orders.creatd"}}
		},
		"broker.bind: there is no topic orders.creatd": func(c *config.Config) {
			c.Broker.Bind = []broker.Binding{{Topic: "orders.creatd", Broker: broker.Kafka}}
		},
		"broker.bind: topics orders.created and orders.completed are both named orders.completed on kafka": func(c *config.Config) {
			c.Broker.Kind = broker.Kafka
			c.Broker.Bind = []broker.Binding{{Topic: "orders.created", Name: "orders.completed"}}
		},
	} {
		s := apptest.New(t, url, change)

		if err := s.Service.Run(t.Context(), func() { t.Error("it started") }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, expected %s", err, want)
		}
	}
}
