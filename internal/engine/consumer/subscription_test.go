package consumer_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	watermill "github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// brittle is a source whose subscriptions can end on their own.
type brittle struct {
	connected chan struct{}
	topics    map[string]chan *watermill.Message
}

func (*brittle) Down() string { return "" }

func (b *brittle) Connect(ctx context.Context) error {
	select {
	case <-b.connected:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (*brittle) Has(string) bool { return true }
func (b *brittle) Subscriber(string, func([]byte) string) (watermill.Subscriber, error) {
	return b, nil
}
func (*brittle) Subscribed()  {}
func (*brittle) Close() error { return nil }

func (b *brittle) Subscribe(ctx context.Context, topic string) (<-chan *watermill.Message, error) {
	out := make(chan *watermill.Message)

	go func() {
		select {
		case <-b.topics[topic]:
		case <-ctx.Done():
		}

		close(out)
	}()

	return out, nil
}

// Otherwise one of two topics would no longer be read, and nothing would report it.
func TestASubscriptionThatEndsEndsTheService(t *testing.T) {
	t.Parallel()

	pool, logger, registry := pgtest.New(t), pgtest.Logger(t), prometheus.NewRegistry()

	router, err := consumer.NewRouter(consumer.DefaultConfig(), pool, failed.NewStore(failed.DefaultConfig(), pool), breaker.NewSet(logger, registry),
		outbox.NewRelay(outbox.DefaultConfig(), pool, logger, registry), nil, logger, registry)
	if err != nil {
		t.Fatal(err)
	}

	consumer.On(router, "writer", func(context.Context, pgx.Tx, event.Event[note]) ([]event.Outgoing, error) { return nil, nil })
	consumer.On(router, "other", func(context.Context, pgx.Tx, event.Event[other]) ([]event.Outgoing, error) { return nil, nil })

	expect := func(phase consumer.Phase) {
		t.Helper()

		for _, s := range router.States() {
			if s.Phase != phase {
				t.Errorf("%s is %s, expected %s", s.Consumer, s.Phase, phase)
			}
		}
	}

	broker := &brittle{connected: make(chan struct{}), topics: map[string]chan *watermill.Message{}}
	consumed, _ := router.Topics()

	for _, topic := range consumed {
		broker.topics[topic] = make(chan *watermill.Message)
	}

	expect(consumer.NotRunning)

	started, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- router.Run(t.Context(), []consumer.Source{broker}, func() { close(started) }) }()

	pgtest.Eventually(t, "it connects", func() bool { return router.States()[0].Phase == consumer.Connecting })
	close(broker.connected)
	<-started
	expect(consumer.Subscribed)
	close(broker.topics[consumed[1]])

	if err := <-done; err == nil || !strings.Contains(err.Error(), "the subscription of topic "+consumed[1]+" ended unexpectedly") {
		t.Errorf("got %v", err)
	}

	expect(consumer.Draining)
}

// Messages for a topic that its broker refuses wait in the outbox.
func TestATopicThatIsNotPublishedIsStalled(t *testing.T) {
	t.Parallel()

	pool, logger, registry := pgtest.New(t), pgtest.Logger(t), prometheus.NewRegistry()
	relay := outbox.NewRelay(outbox.DefaultConfig(), pool, logger, registry)

	router, err := consumer.NewRouter(consumer.DefaultConfig(), pool, failed.NewStore(failed.DefaultConfig(), pool), breaker.NewSet(logger, registry),
		relay, nil, logger, registry)
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())

	var running sync.WaitGroup

	running.Go(func() { relay.Run(ctx, outbox.Target{Publisher: refusing{}, Lanes: 1}) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})

	r := &rig{t: t, pool: pool}
	r.send(message("a", "1"))

	pgtest.Eventually(t, "the topic is stalled", func() bool { return strings.Contains(router.Stalled("notes"), "notes cannot be published") })

	if why := router.Stalled("other"); strings.Contains(why, "published") {
		t.Errorf("the other topic is also stalled: %s", why)
	}
}

// refusing is a publisher whose broker refuses every topic.
type refusing struct{}

func (refusing) Publish(topic string, _ ...*watermill.Message) error {
	return &driver.RefusedError{Scope: driver.OneTopic, Topic: topic, Err: errBroken}
}

func (refusing) Close() error { return nil }
