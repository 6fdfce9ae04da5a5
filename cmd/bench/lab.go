package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/notification"
)

// figures are the measurements of a run by name.
type figures map[string]float64

// scenario is one measurement.
type scenario struct {
	name string
	run  func(ctx context.Context, warmup bool) (figures, error)
}

// lab knows the servers and creates a clean site for each run.
type lab struct {
	settings

	server *pgxpool.Pool
	logger *slog.Logger
	runs   int
	// batch is the mean batch of the last embedded run; the ceiling uses it.
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

func (l *lab) scenarios() ([]scenario, error) {
	switch l.suite {
	case "pipeline":
		return l.pipelines(), nil
	case "aged":
		return l.agedScenarios(), nil
	case "audit":
		return []scenario{{"audit", l.audited}}, nil
	default:
		return nil, fmt.Errorf("there is no suite %s, expected pipeline, aged or audit", l.suite)
	}
}

func (l *lab) pipelines() []scenario {
	var all []scenario

	for _, kind := range []string{broker.Embedded, broker.Kafka, broker.RabbitMQ} {
		all = append(all,
			scenario{kind + " uniform", func(ctx context.Context, w bool) (figures, error) { return l.throughput(ctx, kind, l.skus, w) }},
			scenario{kind + " hot", func(ctx context.Context, w bool) (figures, error) { return l.throughput(ctx, kind, 1, w) }},
		)

		if kind == broker.Embedded {
			all = append(all, scenario{"ceiling", l.ceiling})
		} else {
			all = append(all, scenario{kind + " naive", func(ctx context.Context, w bool) (figures, error) { return l.naive(ctx, kind, w) }})
		}

		for _, rate := range []int{50, 400} {
			all = append(all, scenario{fmt.Sprintf("%s latency %d/s", kind, rate),
				func(ctx context.Context, w bool) (figures, error) { return l.latency(ctx, kind, rate, w) }})
		}
	}

	for _, d := range loads() {
		all = append(all,
			scenario{"kafka " + d.name, func(ctx context.Context, w bool) (figures, error) {
				return l.domain(ctx, d, "serve", l.count(l.orders, w))
			}},
			scenario{"kafka " + d.name + " naive", func(ctx context.Context, w bool) (figures, error) {
				return l.domain(ctx, d, "naive", l.count(l.naiveOrders, w))
			}},
		)
	}

	return append(all, scenario{"rebuild", func(ctx context.Context, w bool) (figures, error) {
		if w {
			return l.rebuild(ctx, l.events/100)
		}

		return l.rebuild(ctx, l.events)
	}})
}

// site is a clean database and broker for one run.
type site struct {
	lab  *lab
	cfg  config.Config
	pool *pgxpool.Pool
	// release closes the pool.
	release func()
	name    string
	// http is the address of the child.
	http string
}

func (l *lab) newSite(ctx context.Context, kind string, skus int) (*site, error) {
	return l.newSiteFrom(ctx, kind, skus, "template0")
}

// newSiteFrom returns a site with a copy of a database.
func (l *lab) newSiteFrom(ctx context.Context, kind string, skus int, template string) (*site, error) {
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
	s.cfg.HTTP.Addr, s.cfg.Health.Addr = "127.0.0.1:0", "127.0.0.1:39464"
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

	_, err = s.pool.Exec(ctx, `INSERT INTO stock (product_id, supplied, available)
		SELECT 'sku_' || i, 1000000000, 1000000000 FROM generate_series(0, $1 - 1) AS i`, skus)
	if err != nil {
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

// cleanBroker removes the messages of earlier runs.
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
		if _, err := channel.QueueDelete(topic.Name, false, false, false); err != nil {
			return err
		}
	}

	return nil
}

func (s *site) close() {
	ctx := context.Background()
	s.release()

	if _, err := s.lab.server.Exec(ctx, "DROP DATABASE "+s.name+" WITH (FORCE)"); err != nil {
		s.lab.logger.Error("dropping database", slog.Any("error", err))
	}
	// Flush what the run has written before the next one starts.
	if _, err := s.lab.server.Exec(ctx, "CHECKPOINT"); err != nil {
		s.lab.logger.Error("checkpoint", slog.Any("error", err))
	}
}

func newOrder(i, skus int, id string) fulfilment.OrderCreated {
	quantity := int64(1)
	amount := price

	return fulfilment.OrderCreated{Order: fulfilment.NewOrder{
		ID: id, ProductID: "sku_" + strconv.Itoa(i%skus), Quantity: &quantity, TotalAmount: &amount,
	}}
}

// source publishes orders like another system.
type source struct {
	site *site
	conn *broker.Conn
}

func (s *site) newSource(ctx context.Context) (*source, error) {
	if s.cfg.Broker.Kind == broker.Embedded {
		return &source{site: s}, nil
	}

	conn, err := broker.New(s.cfg.Broker, s.lab.logger)
	if err != nil {
		return nil, err
	}

	return &source{site: s, conn: conn}, conn.Connect(ctx, topics())
}

func (s *source) close() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

// publish returns when the messages are stored.
func (s *source) publish(ctx context.Context, payloads ...event.Payload) error {
	if s.conn == nil {
		return s.append(ctx, payloads)
	}

	for _, p := range payloads {
		payload, err := event.Encode(p)
		if err != nil {
			return err
		}

		msg := message.NewMessage(event.NewID().String(), payload)
		msg.Metadata[event.HeaderKey] = p.Key()

		if err := s.conn.Publisher().Publish(p.Topic(), msg); err != nil {
			return err
		}
	}

	return nil
}

func (s *source) append(ctx context.Context, payloads []event.Payload) error {
	messages := make([]event.Outgoing, len(payloads))
	for i, p := range payloads {
		messages[i] = event.Start(p)
	}

	err := postgres.InTx(ctx, s.site.pool, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, messages) })
	if err != nil {
		return err
	}

	_, err = s.site.pool.Exec(ctx, `SELECT pg_notify($1, '')`, outbox.Channel)

	return err
}

// preload publishes n messages as fast as it can.
func (s *source) preload(ctx context.Context, n int, payload func(i int) event.Payload) error {
	const chunk, workers = 500, 64

	var (
		wait  sync.WaitGroup
		mu    sync.Mutex
		first error
		next  = make(chan int)
	)

	for range workers {
		wait.Go(func() {
			for from := range next {
				var payloads []event.Payload
				for i := from; i < min(from+chunk, n); i++ {
					payloads = append(payloads, payload(i))
				}

				if err := s.publish(ctx, payloads...); err != nil {
					mu.Lock()
					first = err
					mu.Unlock()
				}
			}
		})
	}

	for from := 0; from < n; from += chunk {
		next <- from
	}

	close(next)
	wait.Wait()

	return first
}

// process is a child process.
type process struct {
	cmd *exec.Cmd
	out io.ReadCloser
}

// start runs this program as a child in the given role and waits until it is
// ready.
func (s *site) start(ctx context.Context, role string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}

	if s.http, err = freeAddress(); err != nil {
		return nil, err
	}

	spec, err := json.Marshal(childSpec{Role: role, URL: string(s.cfg.Postgres.URL), Group: s.name, Kind: s.cfg.Broker.Kind, HTTP: s.http})
	if err != nil {
		return nil, err
	}

	cmd := exec.CommandContext(ctx, self, "child", string(spec))
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }

	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}

	if err := cmd.Start(); err != nil {
		return nil, err
	}

	if !bufio.NewScanner(out).Scan() {
		return nil, errors.Join(errors.New("the child exited before it was ready"), cmd.Wait())
	}

	return &process{cmd: cmd, out: out}, nil
}

// freeAddress returns an unused address on loopback.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}

	return listener.Addr().String(), listener.Close()
}

// stop stops the child and returns its peak memory in MB and its CPU seconds.
func (p *process) stop() (peak, cpu float64, err error) {
	peak = peakMemory(p.cmd.Process.Pid)

	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, 0, err
	}

	if err := p.cmd.Wait(); err != nil {
		return 0, 0, err
	}

	state := p.cmd.ProcessState

	return peak, (state.UserTime() + state.SystemTime()).Seconds(), nil
}

func peakMemory(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}

	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)

			return kb / 1024
		}
	}

	return 0
}

// meanBatch reads the child's metrics.
func (s *site) meanBatch(ctx context.Context) float64 {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+"/metrics", nil)
	if err != nil {
		return 0
	}

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()

	var sum, count float64

	for scanner := bufio.NewScanner(response.Body); scanner.Scan(); {
		name, value, _ := strings.Cut(scanner.Text(), " ")
		number, _ := strconv.ParseFloat(value, 64)

		switch {
		case strings.HasPrefix(name, "millrace_batch_size_sum"):
			sum += number
		case strings.HasPrefix(name, "millrace_batch_size_count"):
			count += number
		}
	}

	return sum / max(count, 1)
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
