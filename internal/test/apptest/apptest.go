// Package apptest runs the whole service in a test, on the embedded broker and
// with its own database: publish to a topic, wait for messages on another.
//
//	s := apptest.Start(t)
//	s.Publish("orders.created", `{"order": {...}}`)
//	requested := s.Messages("payments.requested", 1)
//
// A test fails immediately when a message fails, unless it calls ExpectFailures.
package apptest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/millracehq/millrace"
	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Service is a service under test.
type Service struct {
	*app.Service

	tb      testing.TB
	release func()
	stop    func()
	// expectFailures is true if messages may fail.
	expectFailures atomic.Bool

	mu        sync.Mutex
	published map[string][]Message
}

// Message is a message confirmed by a broker.
type Message struct {
	ID      uuid.UUID
	Headers event.Headers
	Payload []byte
}

// Start runs a service that drains when the test ends.
func Start(tb testing.TB, changes ...func(*config.Config)) *Service {
	tb.Helper()

	s := New(tb, pgtest.URL(tb), changes...)
	s.Run()

	return s
}

// New returns a service that uses the database at url. It is not running yet, so that
// routes can be added.
func New(tb testing.TB, url string, changes ...func(*config.Config)) *Service {
	tb.Helper()

	return NewWithLog(tb, url, pgtest.Logger(tb), changes...)
}

// NewWithLog is New with a log of the test's own.
func NewWithLog(tb testing.TB, url string, logger *slog.Logger, changes ...func(*config.Config)) *Service {
	tb.Helper()

	cfg := config.Default()
	cfg.Postgres.URL = postgres.Secret(url)
	cfg.Postgres.MigrateOnStart = false // already migrated by pgtest
	cfg.HTTP.Addr, cfg.Health.Addr = "127.0.0.1:0", "127.0.0.1:0"

	for _, change := range changes {
		change(&cfg)
	}

	if err := cfg.Validate(); err != nil {
		tb.Fatal(err)
	}

	service, release, err := millrace.New(cfg, logger)
	if err != nil {
		tb.Fatal(err)
	}

	s := &Service{Service: service, tb: tb, release: sync.OnceFunc(release), stop: func() {}, published: map[string][]Message{}}
	service.Observe(s.observe)
	tb.Cleanup(s.Stop)

	return s
}

// Run starts the service and waits until it is ready.
func (s *Service) Run() {
	s.tb.Helper()

	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)

	go func() { done <- s.Service.Run(ctx, func() { close(ready) }) }()

	var watching sync.WaitGroup

	watching.Go(func() { s.watchFailures(ctx) })

	s.stop = sync.OnceFunc(func() {
		cancel()

		if err := <-done; err != nil {
			s.tb.Errorf("the service did not drain: %v", err)
		}

		watching.Wait()
	})

	select {
	case <-ready:
	case err := <-done:
		done <- nil

		s.tb.Fatalf("the service did not start: %v", err)
	}
}

// Stop drains the service. It is idempotent.
func (s *Service) Stop() {
	s.stop()
	s.release()
}

// ExpectFailures allows messages to be parked or stopped. Without it, the first
// failure fails the test.
func (s *Service) ExpectFailures() { s.expectFailures.Store(true) }

// watchPause is the polling interval of watchFailures.
const watchPause = 50 * time.Millisecond

// watchFailures fails the test when a message fails, which also ends
// pgtest.Eventually.
func (s *Service) watchFailures(ctx context.Context) {
	for backoff.Sleep(ctx, watchPause) == nil {
		if s.reportFailure(ctx) {
			return
		}
	}

	// A test may end before the next poll.
	s.reportFailure(context.WithoutCancel(ctx))
}

// reportFailure fails the test and returns true if a message failed unexpectedly.
func (s *Service) reportFailure(ctx context.Context) bool {
	if s.expectFailures.Load() {
		return false
	}

	var (
		consumer, topic, reason, text string
		payload                       []byte
	)

	err := s.Pool.QueryRow(ctx, `
		SELECT consumer, topic, payload, reason, error FROM failed_messages
		WHERE state <> 'resolved' AND error <> '' AND reason <> 'early' ORDER BY id LIMIT 1`).Scan(&consumer, &topic, &payload, &reason, &text)
	if err != nil || s.expectFailures.Load() {
		return false
	}

	s.tb.Errorf("%s failed with %s on a message of %s: %s\nmessage: %s\n(a test that expects failures calls ExpectFailures)",
		consumer, reason, topic, readable(text), payload)

	return true
}

// readable reduces the stack of a panic to the handler's frames, between the panic
// and the engine.
func readable(text string) string {
	message, stack, isPanic := strings.Cut(text, "\ngoroutine ")
	if !isPanic {
		return text
	}

	if _, rest, found := strings.Cut(stack, "\npanic("); found {
		_, rest, _ = strings.Cut(rest, "\n") // its arguments
		_, stack, _ = strings.Cut(rest, "\n")
	}

	stack, _, _ = strings.Cut(stack, "github.com/millracehq/millrace/internal/engine/consumer.")

	return message + "\n" + strings.TrimRight(stack, "\n")
}

func (s *Service) observe(topic string, msg *message.Message) {
	id, _ := uuid.Parse(msg.UUID) // the relay only sends UUIDs

	s.mu.Lock()
	defer s.mu.Unlock()

	s.published[topic] = append(s.published[topic], Message{ID: id, Headers: event.Headers(msg.Metadata), Payload: msg.Payload})
}

// Publish publishes a payload through the outbox and returns the message's ID. It
// fails the test if the payload would be rejected.
func (s *Service) Publish(topic, payload string) uuid.UUID {
	s.tb.Helper()

	key, err := s.Operator.CheckPayload(topic, []byte(payload))
	if err != nil {
		s.tb.Fatal(err)
	}

	return s.PublishMessage(event.Message{Topic: topic, Key: key, Payload: []byte(payload)})
}

// PublishMessage publishes a message unchanged, except that it sets a missing ID.
func (s *Service) PublishMessage(m event.Message) uuid.UUID {
	s.tb.Helper()

	if m.ID == uuid.Nil {
		m.ID = event.NewID()
	}

	pgtest.Eventually(s.tb, "the message is published", func() bool {
		err := s.Operator.Publish(s.tb.Context(), []event.Message{m})
		if err != nil && !postgres.IsUnavailable(err) {
			s.tb.Fatal(err)
		}

		return err == nil
	})

	return m.ID
}

// Messages waits for n messages on a topic and returns all that have been confirmed,
// in order of confirmation. The embedded broker confirms a message once its
// consumer has acknowledged it.
func (s *Service) Messages(topic string, n int) []Message {
	s.tb.Helper()

	var found []Message

	pgtest.Eventually(s.tb, fmt.Sprintf("%d messages arrive on %s", n, topic), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()

		found = s.published[topic]

		return len(found) >= n
	})

	return found
}

// Fields returns the payload as an object.
func (m Message) Fields() map[string]any {
	var fields map[string]any
	if err := json.Unmarshal(m.Payload, &fields); err != nil {
		return map[string]any{"not JSON": string(m.Payload)}
	}

	return fields
}

// Value returns the single value that a query returns.
func Value[T any](s *Service, sql string, args ...any) T {
	s.tb.Helper()

	return pgtest.Value[T](s.tb, s.Pool, sql, args...)
}

// Seed adds the guide's stock.
func (s *Service) Seed() {
	s.tb.Helper()

	if err := s.Inventory.Seed(s.tb.Context(), map[string]int64{"product_1": 100, "product_2": 50, "product_3": 25}); err != nil {
		s.tb.Fatal(err)
	}
}

// WaitForOrder waits until an order has the given status.
func (s *Service) WaitForOrder(id, status string) {
	s.tb.Helper()
	pgtest.Eventually(s.tb, id+" is "+status, func() bool {
		details, err := s.Orders.Show(s.tb.Context(), id)

		return err == nil && string(details.Status) == status
	})
}

// WaitUntilIdle waits until no message is left to publish or retry.
func (s *Service) WaitUntilIdle() {
	s.tb.Helper()
	pgtest.Eventually(s.tb, "the outbox is empty and no key is waiting", func() bool {
		return Value[int](s, `SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM failed_keys WHERE due_at IS NOT NULL)`) == 0
	})
}
