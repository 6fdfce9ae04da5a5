package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// soon is less than the longest pause between attempts to publish to a refused topic, 30 s.
const soon = 15 * time.Second

// answers is a publisher that returns the result of a function of topic and key.
type answers func(topic, key string) error

func (a answers) Publish(topic string, messages ...*message.Message) error {
	return a(topic, messages[0].Metadata[event.HeaderKey])
}

func (answers) Close() error { return nil }

func refusing(scope driver.Scope, topic string) error {
	return &driver.RefusedError{Scope: scope, Topic: topic, Remedy: "repair it", Err: errRefused}
}

// publishing runs a relay to target until the test ends or stop is called.
func publishing(t *testing.T, pool *pgxpool.Pool, cfg outbox.Config, target outbox.Target) (r *outbox.Relay, stop func()) {
	t.Helper()

	cfg.PollInterval = 20 * time.Millisecond
	r = outbox.NewRelay(cfg, pool, pgtest.Logger(t), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(context.Background())

	var running sync.WaitGroup

	running.Go(func() { r.Run(ctx, target) })

	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)

	return r, stop
}

// add appends n messages for a topic, each with its own key: a0, a1 and so on.
func add(t *testing.T, pool *pgxpool.Pool, topic, key string, n int) {
	t.Helper()

	messages := make([]event.Message, n)
	for i := range messages {
		messages[i] = event.Message{ID: event.NewID(), Topic: topic, Key: fmt.Sprint(key, i), Payload: []byte("1")}
	}

	appendMessages(t, pool, messages...)
}

// left returns a function that reports whether n messages for a topic are in the outbox.
func left(t *testing.T, pool *pgxpool.Pool, topic string, n int) func() bool {
	t.Helper()

	return func() bool {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM outbox WHERE topic = $1`, topic) == n
	}
}

func stuckTopics(r *outbox.Relay) (topics []string) {
	for _, s := range r.Stuck() {
		topics = append(topics, s.Topic)
	}

	return topics
}

func TestAPartitionThatIsRefusedDelaysNoOtherKey(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	broker := breaker.NewSet(pgtest.Logger(t), prometheus.NewRegistry()).Get("broker")

	add(t, pool, "t", "a", 300)
	add(t, pool, "t", "b", 250)
	publishing(t, pool, outbox.DefaultConfig(), outbox.Target{Lanes: 8, Breaker: broker, Publisher: answers(func(topic, key string) error {
		if key[0] == 'a' {
			return refusing(driver.OnePartition, topic)
		}

		return nil
	})})

	pgtest.Eventually(t, "the other keys are published", left(t, pool, "t", 300))

	if state := broker.State(); !state.Up {
		t.Errorf("a partition counts as an outage of the broker: %+v", state)
	}
}

func TestManyKeysOfARefusedPartitionLeaveSpaceForOtherTopics(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	n := outbox.DefaultConfig().MaxInFlight + 500

	add(t, pool, "t", "a", n)
	add(t, pool, "u", "b", 100)

	r, _ := publishing(t, pool, outbox.DefaultConfig(), outbox.Target{Lanes: 8, Publisher: answers(func(topic, _ string) error {
		if topic == "t" {
			return refusing(driver.OnePartition, topic)
		}

		return nil
	})})

	pgtest.Eventually(t, "the other topic is published", left(t, pool, "u", 0))
	pgtest.Eventually(t, "the topic is named with its remedy", func() bool {
		stuck := r.Stuck()

		return len(stuck) == 1 && stuck[0].Topic == "t" && stuck[0].Remedy == "repair it"
	})

	if !left(t, pool, "t", n)() {
		t.Error("messages that the broker refused are gone")
	}
}

func TestARefusedTopicIsTriedWithAnotherKeyEachTime(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	add(t, pool, "t", "a", 2)
	add(t, pool, "t", "b", 1)
	publishing(t, pool, outbox.DefaultConfig(), outbox.Target{Lanes: 1, Publisher: answers(func(topic, key string) error {
		if key[0] == 'a' {
			return refusing(driver.OneTopic, topic)
		}

		return nil
	})})

	pgtest.Eventually(t, "the key that the broker takes is published", left(t, pool, "t", 2))
}

func TestARefusedTopicIsTriedDespiteABacklogOfOthers(t *testing.T) {
	t.Parallel()

	var (
		granted atomic.Bool
		busy    atomic.Int32
	)

	pool, release := pgtest.New(t), make(chan struct{})
	cfg := outbox.DefaultConfig()
	cfg.BatchSize, cfg.MaxInFlight = 2, 2

	r, _ := publishing(t, pool, cfg, outbox.Target{Lanes: 3, Publisher: answers(func(topic, _ string) error {
		switch {
		case topic == "backlog":
			busy.Add(1)
			<-release
		case !granted.Load():
			return refusing(driver.OneTopic, topic)
		}

		return nil
	})})
	defer close(release)

	add(t, pool, "t", "a", 1)
	pgtest.Eventually(t, "the topic is refused", func() bool { return slices.Equal(stuckTopics(r), []string{"t"}) })

	add(t, pool, "backlog", "b", 3)
	pgtest.Eventually(t, "the relay holds as many messages as it may", func() bool { return busy.Load() == 2 })

	granted.Store(true)
	pgtest.Eventually(t, "the topic is published", func() bool { return len(r.Stuck()) == 0 })
}

// The refusal of a single message shows that the broker accepts the topic.
func TestARefusedMessageEndsTheRefusalOfItsTopic(t *testing.T) {
	t.Parallel()

	var granted atomic.Bool

	pool := pgtest.New(t)
	r, _ := publishing(t, pool, outbox.DefaultConfig(), outbox.Target{Lanes: 1, Publisher: answers(func(topic, key string) error {
		switch {
		case !granted.Load():
			return refusing(driver.OneTopic, topic)
		case key[0] == 'a':
			return refusing(driver.OneMessage, topic)
		}

		return nil
	})})

	add(t, pool, "t", "a", 1)
	pgtest.Eventually(t, "the topic is refused", func() bool { return len(r.Stuck()) == 1 })
	granted.Store(true)

	add(t, pool, "t", "b", 1)
	pgtest.Eventually(t, "the message is refused", func() bool {
		refused, err := outbox.ListRefused(t.Context(), pool, "t", 0)

		return err == nil && len(refused) == 1
	})

	at := time.Now()

	pgtest.Eventually(t, "the other one is published", left(t, pool, "t", 1))

	if took := time.Since(at); took > soon {
		t.Errorf("it took %s", took)
	}
}

func TestARefusedTopicIsTriedAgainAfterItsRowWasReturned(t *testing.T) {
	t.Parallel()

	var (
		granted, changed atomic.Bool
		rounds           atomic.Int32
	)

	pool, release, busy := pgtest.New(t), make(chan struct{}), make(chan struct{})
	r, _ := publishing(t, pool, outbox.DefaultConfig(), outbox.Target{
		Lanes: 1,
		Publisher: answers(func(topic, _ string) error {
			switch {
			case topic == "busy":
				close(busy)
				<-release
			case !granted.Load():
				return refusing(driver.OneTopic, topic)
			}

			return nil
		}),
		Suspended: func() []string {
			if !changed.Load() {
				return nil
			}

			rounds.Add(1)

			return []string{"suspended"}
		},
	})

	add(t, pool, "t", "a", 1)
	pgtest.Eventually(t, "the topic is refused", func() bool { return len(r.Stuck()) == 1 })
	add(t, pool, "busy", "b", 1)
	<-busy

	pgtest.Eventually(t, "a row of it waits for the lane", func() bool { return time.Since(r.Stuck()[0].Since) > 3*time.Second })
	changed.Store(true)
	pgtest.Eventually(t, "the suspension of another topic returns it", func() bool { return rounds.Load() > 2 })

	at := time.Now()

	granted.Store(true)
	close(release)
	pgtest.Eventually(t, "it is published", left(t, pool, "t", 0))

	if took := time.Since(at); took > soon {
		t.Errorf("it took %s", took)
	}
}

func TestARefusedTopicIsNotTriedInATightLoopAfterAnotherFailure(t *testing.T) {
	t.Parallel()

	var answered atomic.Int32

	pool := pgtest.New(t)
	r, _ := publishing(t, pool, outbox.DefaultConfig(), outbox.Target{Lanes: 1, Publisher: answers(func(topic, _ string) error {
		if answered.Add(1) == 1 {
			return refusing(driver.OneTopic, topic)
		}

		return errors.New("connection lost")
	})})

	add(t, pool, "t", "a", 1)
	pgtest.Eventually(t, "the topic is refused", func() bool { return len(r.Stuck()) == 1 })

	since := time.Now()

	pgtest.Eventually(t, "it has been tried for some time", func() bool { return answered.Load() > 1 && time.Since(since) > 4*time.Second })

	if n := answered.Load(); n > 20 {
		t.Errorf("it was tried %d times", n)
	}
}

func TestADrainDoesNotWaitForMessagesThatWereReturned(t *testing.T) {
	t.Parallel()

	var suspended, looked atomic.Int64 // when, in nanoseconds since 1970

	pool, release, busy := pgtest.New(t), make(chan struct{}), make(chan struct{})
	cfg := outbox.DefaultConfig()
	cfg.DrainTimeout = time.Minute

	_, stop := publishing(t, pool, cfg, outbox.Target{
		Lanes: 1,
		Publisher: answers(func(string, string) error {
			close(busy)
			<-release

			return errors.New("the consumer is paused")
		}),
		Suspended: func() []string {
			if suspended.Load() == 0 {
				return nil
			}

			looked.Store(time.Now().UnixNano())

			return []string{"t"}
		},
	})

	add(t, pool, "t", "a", 1)
	<-busy
	suspended.Store(time.Now().UnixNano())
	pgtest.Eventually(t, "the relay has noticed", func() bool { return looked.Load() > suspended.Load()+int64(time.Second) })

	go stop()
	pgtest.Eventually(t, "it drains", func() bool { return time.Since(time.Unix(0, looked.Load())) > time.Second })

	at := time.Now()

	close(release)
	stop()

	if took := time.Since(at); took > soon {
		t.Errorf("the drain took %s", took)
	}
}
