// Package app is the service: what runs, in which order it starts and stops,
// and which topic goes to which handler.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/consumer"
	"github.com/millrace/millrace/internal/fulfilment"
	"github.com/millrace/millrace/internal/httpapi"
	"github.com/millrace/millrace/internal/inbox"
	"github.com/millrace/millrace/internal/inventory"
	"github.com/millrace/millrace/internal/order"
	"github.com/millrace/millrace/internal/outbox"
	"github.com/millrace/millrace/internal/poison"
	"github.com/millrace/millrace/internal/postgres"
)

// Service is an assembled Millrace. Its exported parts are for the command
// line; they work whether or not Run does.
type Service struct {
	Pool      *pgxpool.Pool
	Orders    *order.Service
	Inventory *inventory.Service
	Poison    *poison.Store
	Router    *consumer.Router

	cfg    postgres.Config
	conn   *broker.Conn
	relay  *outbox.Relay
	http   *httpapi.Server
	logger *slog.Logger
}

// NewService assembles a service and lays out its routes.
func NewService(
	cfg postgres.Config, pool *pgxpool.Pool, conn *broker.Conn, router *consumer.Router, relay *outbox.Relay,
	store *poison.Store, orders *order.Service, stock *inventory.Service, process *fulfilment.Process,
	http *httpapi.Server, logger *slog.Logger,
) *Service {
	route(router, process)

	return &Service{
		Pool: pool, Orders: orders, Inventory: stock, Poison: store, Router: router,
		cfg: cfg, conn: conn, relay: relay, http: http, logger: logger,
	}
}

// Timings of a stop beyond those that are configured.
const (
	httpCloseTimeout = 2 * time.Second
	partitionsEvery  = 6 * time.Hour
)

// Run serves until ctx ends, then drains: not ready, stop fetching, batches
// finish, the relay finishes what is in flight, the listener closes. started
// is called once the service is ready; it may be nil.
func (s *Service) Run(ctx context.Context, started func()) (err error) {
	tuneGC()

	if err := s.http.Listen(
		httpapi.Check{Name: "postgres", Ping: s.Pool.Ping},
		httpapi.Check{Name: s.conn.Kind(), Ping: s.conn.Ping},
	); err != nil {
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

// prepare waits for what the service needs and sets it up.
func (s *Service) prepare(ctx context.Context) error {
	if err := postgres.Wait(ctx, s.Pool, s.logger); err != nil {
		return err
	}

	if s.cfg.MigrateOnStart {
		if _, err := postgres.Migrate(ctx, s.Pool, s.logger); err != nil {
			return err
		}
	}

	if err := inbox.EnsurePartitions(ctx, s.Pool, time.Now()); err != nil {
		return err
	}

	return s.conn.Connect(ctx, topics(s.Router))
}

func (s *Service) serve(ctx context.Context, started func()) error {
	relaying, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()

	var background sync.WaitGroup

	err := s.Router.Run(ctx, s.conn.Subscriber, func() {
		background.Go(func() { s.relay.Run(relaying, s.conn.Publisher(), s.conn.Lanes()) })
		background.Go(func() { s.keepPartitions(relaying) })
		s.http.SetReady(true)
		s.logger.Info("ready", slog.String("broker", s.conn.Kind()))

		if started != nil {
			started()
		}

		go func() {
			<-ctx.Done()
			s.http.SetReady(false)
			s.logger.Info("draining; a second signal stops at once")
		}()
	})

	stopRelay()
	background.Wait()

	if closeErr := s.conn.Close(); closeErr != nil {
		s.logger.Warn("closing the broker connection", slog.Any("error", closeErr))
	}

	if err == nil {
		s.logger.Info("drained")
	}

	return err
}

// keepPartitions makes the inbox partitions of the days to come.
func (s *Service) keepPartitions(ctx context.Context) {
	ticker := time.NewTicker(partitionsEvery)
	defer ticker.Stop()

	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if err := inbox.EnsurePartitions(ctx, s.Pool, now); err != nil && ctx.Err() == nil {
				// Rows go to the default partition meanwhile.
				s.logger.Warn("could not create inbox partitions, trying again later", slog.Any("error", err))
			}
		}
	}
}

// Topics returns the names of all topics of the service.
func (s *Service) Topics() []string {
	var names []string
	for _, topic := range topics(s.Router) {
		names = append(names, topic.Name)
	}

	return names
}

// UnknownTopicError says that the service has no such topic.
type UnknownTopicError struct {
	Topic string
	Known []string
}

func (e *UnknownTopicError) Error() string {
	return fmt.Sprintf("there is no topic %s, expected one of %v", e.Topic, e.Known)
}
