package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/notification"
)

// figures are the measurements of a run by name.
type figures map[string]float64

// lab knows the servers and creates a clean site for each run.
type lab struct {
	settings

	server *pgxpool.Pool
	logger *slog.Logger
	runs   int
	// batch is the mean batch size of the last embedded run; the ceiling uses it.
	batch int
	// aged is the database with old inbox rows, once it exists.
	aged *site
}

func newLab(ctx context.Context, s settings) (*lab, error) {
	for _, name := range []string{"MILLRACE_TEST_DATABASE_URL", "MILLRACE_TEST_KAFKA_BROKERS", "MILLRACE_TEST_RABBITMQ_URL"} {
		if os.Getenv(name) == "" {
			return nil, fmt.Errorf("%s is not set: run `make bench`, which starts the servers", name)
		}
	}

	server, err := pgxpool.New(ctx, os.Getenv("MILLRACE_TEST_DATABASE_URL"))
	if err != nil {
		return nil, err
	}

	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))

	return &lab{settings: s, server: server, logger: logger, batch: 64}, nil
}

func (l *lab) close() {
	if l.aged != nil {
		l.aged.close()
	}

	l.server.Close()
}

// site is a clean database and broker for one run.
type site struct {
	lab  *lab
	cfg  config.Config
	pool *pgxpool.Pool
	// release closes the pool.
	release func()
	name    string
	// replicas are the running processes.
	replicas []*process
	// traces is the address to which they export traces; if empty, they create none.
	traces string
}

func (l *lab) newSite(ctx context.Context, kind string) (*site, error) {
	return l.newSiteFrom(ctx, kind, "template0")
}

// newSiteFrom returns a site with a copy of a database.
func (l *lab) newSiteFrom(ctx context.Context, kind, template string) (*site, error) {
	l.runs++
	s := &site{lab: l, cfg: config.Default(), name: fmt.Sprintf("bench_%d_%d", os.Getpid(), l.runs)}

	if _, err := l.server.Exec(ctx, "CREATE DATABASE "+s.name+" TEMPLATE "+template+" STRATEGY file_copy"); err != nil {
		return nil, err
	}

	address, err := url.Parse(os.Getenv("MILLRACE_TEST_DATABASE_URL"))
	if err != nil {
		return nil, err
	}

	address.Path = "/" + s.name
	s.cfg.Postgres.URL = postgres.Secret(address.String())
	s.cfg.Log.Level = "error"
	s.cfg.Broker.Kind = kind
	s.cfg.Broker.Kafka.Brokers = strings.Split(os.Getenv("MILLRACE_TEST_KAFKA_BROKERS"), ",")
	s.cfg.Broker.Kafka.Group = s.name
	s.cfg.Broker.RabbitMQ.URL = postgres.Secret(os.Getenv("MILLRACE_TEST_RABBITMQ_URL"))

	s.cfg.Postgres.MaxConns = 64

	if s.pool, s.release, err = postgres.NewPool(s.cfg.Postgres); err != nil {
		return nil, err
	}

	if _, err := postgres.Migrate(ctx, s.pool, l.logger); err != nil {
		return nil, err
	}

	if err := inbox.Partitions.Ensure(ctx, s.pool, time.Now()); err != nil {
		return nil, err
	}

	return s, s.cleanBroker(ctx)
}

// topics returns all topics of the service.
func topics() []broker.Topic {
	return []broker.Topic{
		{Name: fulfilment.TopicOrderCreated, Consumed: true},
		{Name: fulfilment.TopicPaymentRequested, Consumed: true},
		{Name: fulfilment.TopicOrderCompleted, Consumed: true},
		{Name: fulfilment.TopicOrderRejected},
		{Name: account.TopicUserCreated, Consumed: true},
		{Name: account.TopicUserUpdated, Consumed: true},
		{Name: account.TopicUserEvents, Consumed: true},
		{Name: account.TopicProfileUpdated},
		{Name: notification.Topic, Consumed: true},
		{Name: notification.TopicEmail, Consumed: true},
		{Name: notification.TopicWebhook, Consumed: true},
		{Name: notification.TopicLog, Consumed: true},
		{Name: analytics.Topic, Consumed: true},
	}
}

// cleanBroker removes the messages from earlier runs.
func (s *site) cleanBroker(ctx context.Context) error {
	switch s.cfg.Broker.Kind {
	case broker.Kafka:
		return s.cleanKafka(ctx)
	case broker.RabbitMQ:
		return s.cleanRabbitMQ()
	default:
		return nil
	}
}

func (s *site) cleanKafka(ctx context.Context) error {
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V3_0_0_0

	admin, err := sarama.NewClusterAdmin(s.cfg.Broker.Kafka.Brokers, cfg)
	if err != nil {
		return err
	}
	defer admin.Close()

	for _, topic := range topics() {
		if err := admin.DeleteTopic(topic.Name); err != nil && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
			return err
		}
	}

	return until(ctx, func() (bool, error) {
		left, err := admin.ListTopics()
		if err != nil {
			return false, err
		}

		for _, topic := range topics() {
			if _, there := left[topic.Name]; there {
				return false, nil
			}
		}

		return true, nil
	})
}

func (s *site) cleanRabbitMQ() error {
	return s.eachQueue(func(channel *amqp.Channel, name string) error {
		_, err := channel.QueueDelete(name, false, false, false)

		return err
	})
}

// declareShared creates the queues that the naive service needs: RabbitMQ delivers to all
// subscriptions of a queue, not to one at a time as on those that the driver would create.
func (s *site) declareShared() error {
	return s.eachQueue(func(channel *amqp.Channel, name string) error {
		_, err := channel.QueueDeclare(name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"})

		return err
	})
}

// eachQueue calls fn for the queue of each topic.
func (s *site) eachQueue(fn func(channel *amqp.Channel, name string) error) error {
	conn, err := amqp.Dial(string(s.cfg.Broker.RabbitMQ.URL))
	if err != nil {
		return err
	}
	defer conn.Close()

	channel, err := conn.Channel()
	if err != nil {
		return err
	}

	for _, topic := range topics() {
		if err := fn(channel, topic.Name); err != nil {
			return err
		}
	}

	return nil
}

func (s *site) close() {
	ctx := context.Background()

	for _, p := range s.replicas { // after an error
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}

	s.release()

	if _, err := s.lab.server.Exec(ctx, "DROP DATABASE "+s.name+" WITH (FORCE)"); err != nil {
		s.lab.logger.Error("dropping database", slog.Any("error", err))
	}
	// Flush what the run has written before the next one starts.
	if _, err := s.lab.server.Exec(ctx, "CHECKPOINT"); err != nil {
		s.lab.logger.Error("checkpoint", slog.Any("error", err))
	}
}

// until polls a condition.
func until(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()

	for {
		if ok, err := done(); err != nil || ok {
			return err
		}

		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
