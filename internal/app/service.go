// Package app assembles the service: what runs, in which order it starts and stops,
// and which topic goes to which handler.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/console"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/span"
	"github.com/millracehq/millrace/internal/engine/upkeep"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/shop/user"
)

// Service is an assembled Millrace. The command line uses its exported fields without
// calling Run.
type Service struct {
	Engine
	Domains
	Upkeep

	Operator  *operate.Operator
	Projector *eventstore.Projector
	API       *httpapi.API

	http   *httpapi.Server
	logger *slog.Logger
	// observe receives confirmed messages; see Observe.
	observe func(topic string, msg *message.Message)
}

// Engine holds the parts that move messages.
type Engine struct {
	Postgres     postgres.Config
	Pool         *pgxpool.Pool
	Brokers      *broker.Set
	Router       *consumer.Router
	Relay        *outbox.Relay
	Failed       *failed.Store
	Dependencies *breaker.Set
	Tracer       *span.Tracer
	Registry     *prometheus.Registry
	Warnings     check.Warnings
}

// Upkeep holds the parts that maintain and check the database.
type Upkeep struct {
	Inbox   inbox.Config
	Janitor *upkeep.Janitor
	Audit   *invariant.Auditor
}

// NewService assembles a service and registers its handlers.
func NewService(engine Engine, domains Domains, upkeep Upkeep, http *httpapi.Server, logger *slog.Logger) (*Service, error) {
	if err := errors.Join(refuseNil(engine), refuseNil(domains), refuseNil(upkeep)); err != nil {
		return nil, err
	}

	route(engine.Router, domains)
	engine.Router.Remember(upkeep.Inbox.Retention)

	s := &Service{
		Engine: engine, Domains: domains, Upkeep: upkeep, http: http, logger: logger,
		Projector: eventstore.NewProjector(engine.Pool, account.Projections(), logger),
	}

	s.Operator = &operate.Operator{
		Pool: engine.Pool, Router: engine.Router, Dependencies: engine.Dependencies, Janitor: upkeep.Janitor,
		Failed: engine.Failed, Projector: s.Projector, Auditor: upkeep.Audit, Retention: upkeep.Inbox.Retention, Brokers: engine.Brokers,
		Relay: engine.Relay, Tasks: []*health.Loop{engine.Router.Retries, s.Projector.Loop, upkeep.Janitor.Loop, domains.Expiry.Loop},
		Warnings: engine.Warnings, Logger: logger, Streams: []func(string) string{order.Stream, user.Stream},
	}

	s.Operator.Affected = append(s.Operator.Affected, domains.Expiry.Affected)
	s.Janitor.Add(s.upkeep()...)
	http.Explain(httpapi.State{Health: s.Operator.Health, Started: s.Operator.Started, Status: s.Operator})
	engine.Registry.MustRegister(operate.NewCollector(s.Operator))

	if domains.Webhook.Enabled() {
		http.HandlePublic(payment.WebhookPattern, domains.Webhook)
	}

	s.API = httpapi.NewAPI(s.Operator, logger.With(slog.String("component", "httpapi")), s.resources)
	http.Handle(httpapi.Prefix+"/", access.Viewer, s.API)

	if http.Console() {
		console.Serve(http, s.Operator, s.kinds(), console.Docs{AsyncAPI: s.Describe, OpenAPI: s.API.Description}, logger)
	}

	return s, nil
}

// refuseNil returns an error that lists the nil fields of a struct. Wire leaves a
// field nil if it was added after the last generation.
func refuseNil(parts any) error {
	var errs []error

	value := reflect.ValueOf(parts)
	for i := range value.NumField() {
		switch field := value.Field(i); field.Kind() { //nolint:exhaustive // other kinds cannot be nil here
		case reflect.Pointer, reflect.Interface, reflect.Func:
			if field.IsNil() {
				errs = append(errs, fmt.Errorf("%s.%s is nil: run make generate", value.Type(), value.Type().Field(i).Name))
			}
		}
	}

	return errors.Join(errs...)
}

// checkTopics returns an error if the configuration names a topic that does not exist, or
// gives two topics the same name.
func (s *Service) checkTopics() error {
	for _, topic := range s.Router.Configured() {
		if err := s.Operator.KnownTopic(topic); err != nil {
			return fmt.Errorf("consumer.per_topic: %w", err)
		}
	}

	for _, conn := range s.Brokers.Conns() {
		for _, topic := range s.Brokers.Bound(conn) {
			if err := s.Operator.KnownTopic(topic); err != nil {
				return fmt.Errorf("broker.bind: %w", err)
			}
		}
	}

	if err := s.Brokers.CheckNames(s.Operator.Topics()); err != nil {
		return fmt.Errorf("broker.bind: %w", err)
	}

	return nil
}

// httpCloseTimeout bounds closing the listener after the drain.
const httpCloseTimeout = 2 * time.Second

// Run serves until ctx ends and then drains: it reports not ready, stops receiving,
// finishes its batches, finishes publishing and closes the listener. It calls
// started, unless nil, once the service is ready.
func (s *Service) Run(ctx context.Context, started func()) (err error) {
	if err := s.checkTopics(); err != nil {
		return err
	}

	tuneCollector(s.logger)

	s.Operator.StartedAt = time.Now()
	s.Operator.Enter("starting")

	if err := s.http.Listen(); err != nil {
		return err
	}

	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpCloseTimeout)
		defer cancel()

		err = errors.Join(err, s.http.Close(closeCtx))
	}()

	if err := s.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}

		return err
	}

	return s.serve(ctx, started)
}

// prepare waits for Postgres, applies migrations, checks the schema and creates
// partitions.
func (s *Service) prepare(ctx context.Context) error {
	s.Operator.Enter("waiting for postgres")

	if err := postgres.Wait(ctx, s.Pool, s.logger, s.Operator.Delayed); err != nil {
		return err
	}

	s.Operator.Enter("preparing the database")

	if s.Postgres.MigrateOnStart {
		if _, err := postgres.Migrate(ctx, s.Pool, s.logger); err != nil {
			return err
		}
	}

	if err := postgres.CheckSchema(ctx, s.Pool); err != nil {
		return err
	}

	return s.beginPartitions(ctx)
}

// source adapts a broker to the router. The relay to the broker starts once the
// router has subscribed.
type source struct {
	*broker.Conn

	service *Service
	relay   func(*broker.Conn)
}

// Connect implements consumer.Source.
func (s source) Connect(ctx context.Context) error {
	return s.Conn.Connect(ctx, s.service.topicsOf(s.Conn))
}

// Subscribed implements consumer.Source.
func (s source) Subscribed() { s.relay(s.Conn) }

// Has implements consumer.Source.
func (s source) Has(topic string) bool { return s.service.Brokers.Has(s.Conn, topic) }

func (s *Service) serve(ctx context.Context, started func()) error {
	relaying, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()

	var background sync.WaitGroup

	relay := func(conn *broker.Conn) {
		background.Go(func() { s.Relay.Run(relaying, s.target(conn)) })
	}

	var sources []consumer.Source
	for _, conn := range s.Brokers.Conns() {
		sources = append(sources, source{Conn: conn, service: s, relay: relay})
	}

	background.Go(func() { s.Projector.Run(relaying) })
	background.Go(func() { s.Janitor.Run(relaying) })
	background.Go(func() { s.Expiry.Run(relaying) })
	background.Go(func() { s.Operator.Watch(relaying) })
	s.Operator.Enter(operate.PhaseRunning)

	stopWatching := context.AfterFunc(ctx, func() {
		s.Operator.Enter(operate.PhaseStopping)
		s.logger.Info("draining; a second signal stops immediately")
	})
	defer stopWatching()

	err := s.Router.Run(ctx, sources, func() {
		s.logger.Info("ready", slog.String("broker", s.Brokers.Kinds()))

		if started != nil {
			started()
		}
	})

	stopRelay()
	background.Wait()

	for _, conn := range s.Brokers.Conns() {
		if closeErr := conn.Close(); closeErr != nil {
			s.logger.Warn("closing the broker connection", slog.String("broker", conn.Kind()), slog.Any("error", closeErr))
		}
	}

	crashpoint.At(crashpoint.DrainClosed)

	if err == nil {
		s.logger.Info("drained")
	}

	return err
}

// target describes conn to the relay.
func (s *Service) target(conn *broker.Conn) outbox.Target {
	target := outbox.Target{Publisher: s.Tracer.Publisher(conn.Kind(), conn.Publisher()), Lanes: conn.Lanes(), Run: conn.Run()}

	if s.observe != nil {
		target.Publisher = observed{Publisher: target.Publisher, observe: s.observe}
	}

	if conn.Kind() == broker.Embedded {
		target.Publisher = observed{Publisher: target.Publisher, observe: s.Operator.Tap.Passed}
		// Messages for suspended consumers stay in the table.
		target.Suspended = s.Router.SuspendedTopics
	} else {
		target.Breaker = s.Dependencies.Get(conn.Kind())
	}

	for _, topic := range s.topicsOf(conn) {
		if !topic.Consumed {
			target.Unconsumed = append(target.Unconsumed, topic.Name)
		}
	}

	if conn == s.Brokers.Conns()[0] {
		for _, other := range s.Brokers.Conns()[1:] {
			target.Except = append(target.Except, s.Brokers.Bound(other)...)
		}
	} else {
		target.Name, target.Only = conn.Kind(), s.Brokers.Bound(conn)
	}

	return target
}

// Observe calls fn with each message that a broker confirms. It is for tests and must
// be called before Run.
func (s *Service) Observe(fn func(topic string, msg *message.Message)) { s.observe = fn }

type observed struct {
	message.Publisher

	observe func(topic string, msg *message.Message)
}

func (o observed) Publish(topic string, messages ...*message.Message) error {
	if err := o.Publisher.Publish(topic, messages...); err != nil {
		return err
	}

	for _, msg := range messages {
		o.observe(topic, msg)
	}

	return nil
}

// topicsOf returns the topics of conn.
func (s *Service) topicsOf(conn *broker.Conn) (list []broker.Topic) {
	consumed, publishedOnly := s.Router.Topics()

	for i, name := range slices.Concat(consumed, publishedOnly) {
		if s.Brokers.Has(conn, name) {
			list = append(list, broker.Topic{Name: name, Consumed: i < len(consumed)})
		}
	}

	return list
}

// HealthAddr returns the address on which Run serves probes and metrics; HTTPAddr and
// WebhooksAddr return those of the operator API and of webhooks. All return "" before
// Run.
func (s *Service) HealthAddr() string { return s.http.HealthAddr() }

// HTTPAddr is documented at HealthAddr.
func (s *Service) HTTPAddr() string { return s.http.Addr() }

// WebhooksAddr is documented at HealthAddr.
func (s *Service) WebhooksAddr() string { return s.http.WebhooksAddr() }
