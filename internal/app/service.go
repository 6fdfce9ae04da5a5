// Package app is the service: what runs, in which order it starts and stops,
// and which topic goes to which handler.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace/millrace/internal/account"
	"github.com/millrace/millrace/internal/analytics"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/consumer"
	"github.com/millrace/millrace/internal/eventstore"
	"github.com/millrace/millrace/internal/fulfilment"
	"github.com/millrace/millrace/internal/httpapi"
	"github.com/millrace/millrace/internal/inbox"
	"github.com/millrace/millrace/internal/inventory"
	"github.com/millrace/millrace/internal/notification"
	"github.com/millrace/millrace/internal/order"
	"github.com/millrace/millrace/internal/outbox"
	"github.com/millrace/millrace/internal/poison"
	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/internal/user"
)

// Service is an assembled Millrace. Its exported parts are for the command
// line; they work whether or not Run does.
type Service struct {
	Pool          *pgxpool.Pool
	Orders        *order.Service
	Inventory     *inventory.Service
	Users         *user.Service
	Accounts      *account.Accounts
	Notifications *notification.Service
	Analytics     *analytics.Service
	Projector     *eventstore.Projector
	Poison        *poison.Store
	Router        *consumer.Router

	cfg     postgres.Config
	brokers *broker.Set
	relay   *outbox.Relay
	expiry  *fulfilment.Sweeper
	http    *httpapi.Server
	logger  *slog.Logger
	// observe sees what brokers confirmed; see Observe.
	observe func(topic string, msg *message.Message)
}

// Domains are the services and processes that handle messages.
type Domains struct {
	Orders        *order.Service
	Inventory     *inventory.Service
	Fulfilment    *fulfilment.Process
	Expiry        *fulfilment.Sweeper
	Users         *user.Service
	Accounts      *account.Accounts
	Notifications *notification.Service
	Analytics     *analytics.Service
}

// NewService assembles a service and lays out its routes.
func NewService(
	cfg postgres.Config, pool *pgxpool.Pool, brokers *broker.Set, router *consumer.Router, relay *outbox.Relay,
	store *poison.Store, domains Domains, http *httpapi.Server, logger *slog.Logger,
) (*Service, error) {
	route(router, domains)

	s := &Service{
		Pool: pool, Poison: store, Router: router,
		Orders: domains.Orders, Inventory: domains.Inventory, Users: domains.Users, Accounts: domains.Accounts,
		Notifications: domains.Notifications, Analytics: domains.Analytics,
		Projector: eventstore.NewProjector(pool, account.Projections(), logger),
		cfg:       cfg, brokers: brokers, relay: relay, expiry: domains.Expiry, http: http, logger: logger,
	}

	for _, conn := range brokers.Conns() {
		for _, topic := range brokers.Bound(conn) {
			if !slices.Contains(s.Topics(), topic) {
				return nil, fmt.Errorf("broker.bind: %w", &UnknownTopicError{Topic: topic, Known: s.Topics()})
			}
		}
	}

	return s, nil
}

// Timings of a stop beyond those that are configured.
const (
	httpCloseTimeout = 2 * time.Second
	maintainEvery    = 6 * time.Hour
)

// Run serves until ctx ends, then drains: not ready, stop fetching, batches
// finish, the relay finishes what is in flight, the listener closes. started
// is called once the service is ready; it may be nil.
func (s *Service) Run(ctx context.Context, started func()) (err error) {
	tuneGC()

	checks := []httpapi.Check{{Name: "postgres", Ping: s.Pool.Ping}}
	for _, conn := range s.brokers.Conns() {
		checks = append(checks, httpapi.Check{Name: conn.Kind(), Ping: conn.Ping})
	}

	if err := s.http.Listen(checks...); err != nil {
		return err
	}

	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpCloseTimeout)
		defer cancel()

		err = errors.Join(err, s.http.Close(closeCtx))
	}()

	if err := s.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // stopped before it was ready
		}

		return err
	}

	return s.serve(ctx, started)
}

// prepare waits for Postgres and sets it up.
func (s *Service) prepare(ctx context.Context) error {
	if err := postgres.Wait(ctx, s.Pool, s.logger); err != nil {
		return err
	}

	if s.cfg.MigrateOnStart {
		if _, err := postgres.Migrate(ctx, s.Pool, s.logger); err != nil {
			return err
		}
	}

	return s.maintain(ctx, time.Now())
}

// source is a broker for the router; once it is subscribed to, the relay to it
// begins too.
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
func (s source) Has(topic string) bool { return s.service.brokers.Has(s.Conn, topic) }

func (s *Service) serve(ctx context.Context, started func()) error {
	relaying, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()

	var background sync.WaitGroup

	relay := func(conn *broker.Conn) {
		background.Go(func() { s.relay.Run(relaying, s.target(conn)) })
	}

	var sources []consumer.Source
	for _, conn := range s.brokers.Conns() {
		sources = append(sources, source{Conn: conn, service: s, relay: relay})
	}

	background.Go(func() { s.Projector.Run(relaying) })
	background.Go(func() { s.keepMaintained(relaying) })
	background.Go(func() { s.expiry.Run(relaying) })
	s.http.SetReady(true)

	stopWatching := context.AfterFunc(ctx, func() {
		s.http.SetReady(false)
		s.logger.Info("draining; a second signal stops at once")
	})
	defer stopWatching()

	err := s.Router.Run(ctx, sources, func() {
		s.logger.Info("ready", slog.String("broker", s.brokers.Kinds()))

		if started != nil {
			started()
		}
	})

	stopRelay()
	background.Wait()

	for _, conn := range s.brokers.Conns() {
		if closeErr := conn.Close(); closeErr != nil {
			s.logger.Warn("closing the broker connection", slog.String("broker", conn.Kind()), slog.Any("error", closeErr))
		}
	}

	if err == nil {
		s.logger.Info("drained")
	}

	return err
}

// target is what the relay publishes to conn.
func (s *Service) target(conn *broker.Conn) outbox.Target {
	target := outbox.Target{Publisher: conn.Publisher(), Lanes: conn.Lanes()}

	if s.observe != nil {
		target.Publisher = observed{Publisher: target.Publisher, observe: s.observe}
	}

	if conn == s.brokers.Conns()[0] {
		for _, other := range s.brokers.Conns()[1:] {
			target.Except = append(target.Except, s.brokers.Bound(other)...)
		}
	} else {
		target.Name, target.Only = conn.Kind(), s.brokers.Bound(conn)
	}

	return target
}

// Observe lets fn see each message that a broker confirmed. It is for tests
// and must be called before Run.
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

// maintain makes the partitions of the days to come and drops what is past its
// retention.
func (s *Service) maintain(ctx context.Context, now time.Time) error {
	return errors.Join(inbox.EnsurePartitions(ctx, s.Pool, now), s.Analytics.Maintain(ctx, now))
}

func (s *Service) keepMaintained(ctx context.Context) {
	ticker := time.NewTicker(maintainEvery)
	defer ticker.Stop()

	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if err := s.maintain(ctx, now); err != nil && ctx.Err() == nil {
				// Rows go to the default partitions meanwhile.
				s.logger.Warn("could not maintain partitions, trying again later", slog.Any("error", err))
			}
		}
	}
}

// topicsOf returns the topics that conn has, as it declares them.
func (s *Service) topicsOf(conn *broker.Conn) []broker.Topic {
	return slices.DeleteFunc(topics(s.Router), func(t broker.Topic) bool { return !s.brokers.Has(conn, t.Name) })
}

// Topics returns the names of all topics of the service.
func (s *Service) Topics() []string {
	var names []string
	for _, topic := range topics(s.Router) {
		names = append(names, topic.Name)
	}

	return names
}

// TopicOf returns the topic of a consumer, or its name if it is no more.
func (s *Service) TopicOf(consumer string) string {
	for _, route := range s.Router.Routes() {
		if route.Consumer == consumer {
			return route.Topic
		}
	}

	return consumer
}

// Brokers names the brokers in use, for people.
func (s *Service) Brokers() string { return s.brokers.Kinds() }

// UnknownTopicError says that the service has no such topic.
type UnknownTopicError struct {
	Topic string
	Known []string
}

func (e *UnknownTopicError) Error() string {
	return fmt.Sprintf("there is no topic %s, expected one of %v", e.Topic, e.Known)
}
