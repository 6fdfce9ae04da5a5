package broker_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

var errSeen = errors.New("seen")

// renames checks that the broker sees only its own name for a topic, and the service only
// its own. The broker refuses the name bad.
func (h harness) renames(t *testing.T, bad string) {
	t.Helper()

	topic, name, refused := brokertest.Topic(), brokertest.Topic(), brokertest.Topic()
	h.config.Bind = []broker.Binding{{Topic: topic, Name: name}, {Topic: refused, Broker: h.config.Kind, Name: bad}}

	conn := h.open(t, topic, refused)
	received := consume(t, conn, topic, nil)
	_ = consume(t, conn, refused, nil)

	h.produce(t, h.config, name, brokertest.Foreign{Payload: []byte("theirs")})
	received.wait(t, 1)

	must(t, conn.Publisher().Publish(topic, newMessage("k", "ours")))

	if got := received.wait(t, 2)[1]; !strings.Contains(got.Metadata[event.HeaderOrigin], name) {
		t.Errorf("the origin is %s, expected the name at the broker", got.Metadata[event.HeaderOrigin])
	}

	pgtest.Eventually(t, "the backlog is that of the name", func() bool {
		list, err := conn.Backlogs(t.Context(), []string{topic})

		return err == nil && len(list) == 1 && list[0].Topic == topic && list[0].Err == nil && list[0].Messages == 0 && list[0].Subscriptions > 0
	})

	h.config.Bind = nil // an observer renames nothing

	bare := h.open(t)
	defer bare.Close()

	if list, err := bare.Backlogs(t.Context(), []string{topic}); err != nil || list[0].Err == nil {
		t.Errorf("got %+v, %v: a topic was created with the name here", list, err)
	}

	tailsByName(t, conn, topic)
	pgtest.Eventually(t, "the refused topic has its name here, and its refusal the name there", func() bool {
		conn.Check(t.Context())

		refusal := conn.Refusal(refused)

		return refusal != nil && len(conn.Refusals()) == 1 && strings.Contains(refusal.Err.Error(), bad)
	})
	must(t, conn.Close())
}

func TestTopicsHaveOtherNamesOnKafka(t *testing.T) {
	t.Parallel()
	kafkaHarness(brokertest.Address(t, brokertest.Kafka)).renames(t, "not/valid")
}

func TestTopicsHaveOtherNamesOnRabbitMQ(t *testing.T) {
	t.Parallel()
	rabbitMQHarness(brokertest.Address(t, brokertest.RabbitMQ)).renames(t, "amq.reserved")
}

func TestEachTopicHasANameOfItsOwn(t *testing.T) {
	t.Parallel()

	for want, bind := range map[string][]broker.Binding{
		"topics a and b are both named x on kafka": {{Topic: "a", Name: "x"}, {Topic: "b", Broker: broker.Kafka, Name: "x"}},
		"topics a and b are both named b on kafka": {{Topic: "a", Name: "b"}},
		"": {{Topic: "a", Name: "b"}, {Topic: "b", Name: "a"}, {Topic: "c", Broker: broker.RabbitMQ, Name: "a"}},
	} {
		cfg := broker.DefaultConfig()
		cfg.Kind, cfg.Bind = broker.Kafka, bind

		set, err := broker.NewSet(cfg, slog.New(slog.DiscardHandler))
		must(t, err)

		if err := set.CheckNames([]string{"a", "b", "c"}); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, expected %q", err, want)
		}
	}
}

// tailsByName checks that a tail of the topic shows what is published on it.
func tailsByName(t *testing.T, conn *connection, topic string) {
	t.Helper()

	tailer, is := conn.Driver.(driver.Tailer)
	if !is {
		t.Fatalf("%T cannot tail", conn.Driver)
	}

	tailed := make(chan error, 1)

	go func() {
		tailed <- tailer.Tail(t.Context(), topic, func(*message.Message) error { return errSeen })
	}()

	pgtest.Eventually(t, "the name is tailed", func() bool {
		must(t, conn.Publisher().Publish(topic, newMessage("k", "again")))

		select {
		case err := <-tailed:
			if !errors.Is(err, errSeen) {
				t.Errorf("tailing: %v", err)
			}

			return true
		default:
			return false
		}
	})
}
