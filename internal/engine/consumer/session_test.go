package consumer_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	watermill "github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/line"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// handing is a source that delivers what the test hands to it.
type handing struct{ out chan *watermill.Message }

func (*handing) Down() string                  { return "" }
func (*handing) Connect(context.Context) error { return nil }
func (*handing) Has(string) bool               { return true }
func (*handing) Subscribed()                   {}
func (*handing) Close() error                  { return nil }

func (h *handing) Subscriber(string, func([]byte) string) (watermill.Subscriber, error) {
	return h, nil
}

func (h *handing) Subscribe(ctx context.Context, _ string) (<-chan *watermill.Message, error) {
	if !line.Tells(ctx) {
		return nil, errors.New("the router does not say that it tells of its answers")
	}

	out := make(chan *watermill.Message)

	go func() {
		defer close(out)

		for {
			select {
			case msg := <-h.out:
				out <- msg
			case <-ctx.Done():
				return
			}
		}
	}()

	return out, nil
}

// hand delivers messages in a session that ends when the returned function is called.
func (h *handing) hand(t *testing.T, messages ...event.Message) (delivered []*watermill.Message, end context.CancelFunc) {
	t.Helper()

	session, end := context.WithCancel(t.Context())

	for _, m := range messages {
		msg := watermill.NewMessage(m.ID.String(), m.Payload)
		msg.SetContext(session)
		h.out <- msg
		delivered = append(delivered, msg)
	}

	return delivered, end
}

func answered(messages []*watermill.Message, by func(*watermill.Message) <-chan struct{}) bool {
	for _, msg := range messages {
		select {
		case <-by(msg):
		default:
			return false
		}
	}

	return true
}

// handled is a running router that the test hands messages to, with a consumer that has
// an effect.
type handled struct {
	*handing

	pool   *pgxpool.Pool
	router *consumer.Router
	// away is true while the provider is not responding. effects counts the effects.
	away    atomic.Bool
	effects atomic.Int32
}

func startHanding(t *testing.T) *handled {
	t.Helper()

	h := prepareHanding(t)
	h.run(t)

	return h
}

func prepareHanding(t *testing.T) *handled {
	t.Helper()

	h := &handled{}

	var attempts atomic.Int32

	h.handingTo(t, newPool(t), performing(func(note) error {
		if h.away.Load() {
			return event.Unavailable("provider", errors.New("away"))
		}

		h.effects.Add(1)

		return nil
	}, "provider", &attempts))

	return h
}

// handingTo prepares a router with the routes that register adds.
func (h *handled) handingTo(t *testing.T, pool *pgxpool.Pool, register func(*consumer.Router), changes ...func(*consumer.Config)) {
	t.Helper()

	logger, registry, cfg := pgtest.Logger(t), prometheus.NewRegistry(), consumer.DefaultConfig()
	for _, change := range changes {
		change(&cfg)
	}

	router, err := consumer.NewRouter(cfg, pool, failed.NewStore(failed.DefaultConfig(), pool),
		breaker.NewSet(logger, registry), outbox.NewRelay(outbox.DefaultConfig(), pool, logger, registry), nil, logger, registry)
	if err != nil {
		t.Fatal(err)
	}

	register(router)

	h.handing, h.pool, h.router = &handing{out: make(chan *watermill.Message)}, pool, router
}

func (h *handled) run(t *testing.T) {
	t.Helper()

	ctx, stop := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)

	go func() { ended <- h.router.Run(ctx, []consumer.Source{h}, func() { close(started) }) }()

	<-started
	t.Cleanup(func() {
		stop()

		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A partition changes hands while its messages wait. Its next owner receives them, so
// the waiting ones give way: otherwise both would perform the effect.
func (h *handled) takeBack(t *testing.T, resume func()) {
	t.Helper()

	first, second := message("a", "1"), message("b", "1")
	waiting, end := h.hand(t, first)
	pgtest.Eventually(t, "the consumer is suspended", func() bool { return len(h.router.Suspended()) > 0 })

	behind, endToo := h.hand(t, second)

	end()
	endToo()
	pgtest.Eventually(t, "the messages give way", func() bool { return answered(append(waiting, behind...), (*watermill.Message).Nacked) })

	again, end := h.hand(t, first, second)
	defer end()

	resume()
	pgtest.Eventually(t, "the next owner applies them", func() bool { return answered(again, (*watermill.Message).Acked) })

	if n := h.effects.Load(); n != 2 {
		t.Errorf("%d effects of 2 messages", n)
	}
}

func TestMessagesThatWaitForADependencyGiveWayWhenTheirBrokerTakesThemBack(t *testing.T) {
	t.Parallel()

	h := startHanding(t)
	h.away.Store(true)
	h.takeBack(t, func() { h.away.Store(false) })
}

func TestMessagesOfAPausedConsumerGiveWayWhenTheirBrokerTakesThemBack(t *testing.T) {
	t.Parallel()

	h, by := startHanding(t), activity.Actor{Who: "ann", Why: "maintenance of notes"}
	if _, err := h.router.Pause(t.Context(), "writer", 0, by); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the router has seen the pause", func() bool { return len(h.router.Suspended()) > 0 })
	h.takeBack(t, func() {
		if _, err := h.router.Resume(t.Context(), "writer", by); err != nil {
			t.Error(err)
		}
	})
}
