package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/shop/user"
)

// childSpec configures a child process.
type childSpec struct{ Role, URL, Group, Kind, HTTP, Traces string }

func child(encoded string) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(encoded), &spec); err != nil {
		return err
	}

	// The environment may change other settings, so that they can be compared.
	cfg, err := config.Load("", map[string]any{
		"postgres.url":         spec.URL,
		"http.addr":            "127.0.0.1:0",
		"health.addr":          spec.HTTP,
		"broker.kind":          spec.Kind,
		"broker.kafka.brokers": os.Getenv("MILLRACE_TEST_KAFKA_BROKERS"),
		"broker.kafka.group":   spec.Group,
		"broker.rabbitmq.url":  os.Getenv("MILLRACE_TEST_RABBITMQ_URL"),
		"traces.endpoint":      spec.Traces,
		// The provider's work is not part of the service.
		"payment.simulated.ledger": false,
	})
	if err != nil {
		return err
	}

	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	ready := func() { fmt.Println("ready") }

	if spec.Role == naiveRole {
		return naive(ctx, cfg, logger, ready)
	}

	service, release, err := millrace.New(cfg, logger)
	if err != nil {
		return err
	}
	defer release()

	return service.Run(ctx, ready)
}

// naive implements the same domain the way most services use Watermill: one transaction
// for each message, and the handler publishes after the commit. A crash between the two
// loses the message, and only the state of the order reveals a redelivery.
func naive(ctx context.Context, cfg config.Config, logger *slog.Logger, ready func()) error {
	cfg.Postgres.MaxConns = 64 // one for each concurrent handler

	pool, release, err := postgres.NewPool(cfg.Postgres)
	if err != nil {
		return err
	}
	defer release()

	conn, err := broker.New(cfg.Broker, logger)
	if err != nil {
		return err
	}

	if err := conn.Connect(ctx, topics()); err != nil {
		return err
	}

	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Second}, watermill.NopLogger{})
	if err != nil {
		return err
	}

	router.AddMiddleware(middleware.Retry{MaxRetries: 3, InitialInterval: 10 * time.Millisecond, Multiplier: 2}.Middleware, middleware.Recoverer)

	add := func(consumer, topic string, handle naiveHandler) {
		subscriber, err := stockSubscriber(cfg.Broker, topic)
		if err != nil {
			panic(err) // the broker has just answered
		}

		router.AddConsumerHandler(consumer, topic, subscriber, func(msg *message.Message) error {
			var sent []event.Outgoing

			err := postgres.InTx(msg.Context(), pool, func(tx pgx.Tx) (err error) {
				sent, err = handle(msg.Context(), tx, msg)

				return err
			})
			if err != nil {
				return err
			}

			return publishAll(conn.Publisher(), sent)
		})
	}

	addOrders(pool, add)
	addDomains(cfg, pool, logger, add)

	// Like the service, this maintains the user tables.
	go eventstore.NewProjector(pool, account.Projections(), logger).Run(ctx)

	go func() {
		<-router.Running()
		ready()
	}()

	return errors.Join(router.Run(ctx), conn.Close())
}

// addOrders adds the handlers of the order process.
func addOrders(pool *pgxpool.Pool, add func(consumer, topic string, handle naiveHandler)) {
	process := fulfilment.NewProcess(fulfilment.DefaultConfig(), order.NewService(pool), inventory.NewService(pool), payment.NewSimulated(), nil)

	add("fulfilment.place", fulfilment.TopicOrderCreated, func(ctx context.Context, tx pgx.Tx, msg *message.Message) ([]event.Outgoing, error) {
		e, err := decode[fulfilment.OrderCreated](msg)

		return apply(err, func() ([]event.Outgoing, error) {
			return process.Place(ctx, tx, []event.Event[fulfilment.OrderCreated]{e})
		})
	})
	add("fulfilment.charge", fulfilment.TopicPaymentRequested, func(ctx context.Context, tx pgx.Tx, msg *message.Message) ([]event.Outgoing, error) {
		e, err := decode[fulfilment.PaymentRequested](msg)
		if err != nil {
			return nil, err
		}

		outcome, err := process.Charge(ctx, e)

		return apply(err, func() ([]event.Outgoing, error) {
			return process.Settle(ctx, tx, []fulfilment.Charged{{Event: e, Result: &outcome}})
		})
	})
	add("fulfilment.complete", fulfilment.TopicOrderCompleted, func(ctx context.Context, tx pgx.Tx, msg *message.Message) ([]event.Outgoing, error) {
		e, err := decode[fulfilment.OrderCompleted](msg)

		return apply(err, func() ([]event.Outgoing, error) {
			return process.Complete(ctx, tx, []event.Event[fulfilment.OrderCompleted]{e})
		})
	})
}

// naiveHandler handles one message in its own transaction.
type naiveHandler func(ctx context.Context, tx pgx.Tx, msg *message.Message) ([]event.Outgoing, error)

// addDomains adds the handlers of the other domains.
func addDomains(cfg config.Config, pool *pgxpool.Pool, logger *slog.Logger, add func(consumer, topic string, handle naiveHandler)) {
	users := user.NewService(user.DefaultConfig(), pool)

	notifications, err := notification.NewService(cfg.Notification, pool, account.NewDirectory(users), logger)
	if err != nil {
		panic(err) // the defaults are valid
	}

	accounts := account.New(users)
	tracker := analytics.NewService(cfg.Analytics, pool)

	add("account.create", account.TopicUserCreated, single(accounts.Create))
	add("account.update", account.TopicUserUpdated, single(accounts.Update))
	add("account.legacy", account.TopicUserEvents, single(accounts.Legacy))
	add("analytics.track", analytics.Topic, single(tracker.Track))
	add("notification.route", notification.Topic, single(notifications.Route))
	add("notification.email", notification.TopicEmail, func(ctx context.Context, tx pgx.Tx, msg *message.Message) ([]event.Outgoing, error) {
		e, err := decode[notification.EmailDue](msg)
		if err != nil {
			return nil, err
		}

		events := []event.Event[notification.EmailDue]{e}

		verdicts, err := notifications.AdmitEmail(ctx, tx, events)
		if err := errors.Join(append(verdicts, err)...); err != nil {
			return nil, err
		}

		answer, err := notifications.SendEmail(ctx, events[0])

		return apply(err, func() ([]event.Outgoing, error) {
			return notification.Record(ctx, tx, []event.Effected[notification.EmailDue, string]{{Event: events[0], Result: &answer}})
		})
	})
}

// single calls a batch handler with one event.
func single[P event.Payload](handle func(context.Context, pgx.Tx, []event.Event[P]) ([]event.Outgoing, error)) naiveHandler {
	return func(ctx context.Context, tx pgx.Tx, msg *message.Message) ([]event.Outgoing, error) {
		e, err := decode[P](msg)

		return apply(err, func() ([]event.Outgoing, error) { return handle(ctx, tx, []event.Event[P]{e}) })
	}
}

func apply(err error, handle func() ([]event.Outgoing, error)) ([]event.Outgoing, error) {
	if err != nil {
		return nil, err
	}

	return handle()
}

func decode[P event.Payload](msg *message.Message) (event.Event[P], error) {
	p, err := event.Decode[P](msg.Payload)
	if err != nil {
		return event.Event[P]{}, err
	}

	id, err := uuid.Parse(msg.UUID)

	return event.Event[P]{Meta: event.Meta{ID: id, Correlation: id}, Payload: p}, err
}

func publishAll(publisher message.Publisher, events []event.Outgoing) error {
	for _, e := range events {
		payload, err := event.Encode(e.Payload)
		if err != nil {
			return err
		}

		msg := message.NewMessage(e.ID.String(), payload)
		msg.Metadata[event.HeaderKey] = e.Payload.Key()

		if err := publisher.Publish(e.Payload.Topic(), msg); err != nil {
			return err
		}
	}

	return nil
}
