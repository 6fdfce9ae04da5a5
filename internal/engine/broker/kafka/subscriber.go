package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/broker/window"
)

// subscriber keeps many messages of a partition in hand; Watermill's keeps one. Each
// topic has its own consumer group, so that topics are rebalanced independently.
type subscriber struct {
	*driver.Subscription

	driver *Driver
	topic  string
	key    func(payload []byte) string
	logger *slog.Logger
}

// Subscriber implements driver.Driver.
func (d *Driver) Subscriber(topic string, key func(payload []byte) string) (message.Subscriber, error) {
	return &subscriber{
		Subscription: driver.NewSubscription(), driver: d, topic: topic, key: key,
		logger: d.logger.With(slog.String("topic", topic)),
	}, nil
}

// Subscribe implements message.Subscriber.
func (s *subscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	return s.Run(ctx, func(ctx context.Context, out chan<- *message.Message) {
		m := &member{subscriber: s, out: out}

		for ctx.Err() == nil {
			if err := m.consume(ctx); err != nil && ctx.Err() == nil {
				m.lost(ctx, err)
			}
		}
	}), nil
}

// member takes part in a consumer group.
type member struct {
	*subscriber

	out    chan<- *message.Message
	budget *window.Budget
	// failures counts the failed attempts to join since the member last consumed.
	failures int
	reminder backoff.Reminder
}

// consume joins the group and consumes until ctx ends, or until an error that only a new
// connection can fix. It returns within closeTimeout after ctx has ended, even if the
// broker hangs.
func (m *member) consume(ctx context.Context) error {
	dialing, hangUp := context.WithCancel(context.Background())
	defer hangUp()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(closeTimeout, hangUp) })()

	cfg, err := m.driver.settings(dialing)
	if err != nil {
		return err
	}

	name := m.driver.group(m.topic)

	client, err := newCoordination(m.driver.cfg.Brokers, cfg)
	if err != nil {
		return fmt.Errorf("joining group %s: %w", name, err)
	}

	group, err := sarama.NewConsumerGroupFromClient(name, client)
	if err != nil {
		return errors.Join(fmt.Errorf("joining group %s: %w", name, err), client.Close())
	}

	go func() {
		for err := range group.Errors() {
			m.logger.Warn("reading from kafka", slog.Any("error", err))
		}
	}()

	for ctx.Err() == nil && err == nil { // each round is a generation of the group
		err = group.Consume(ctx, []string{m.driver.cfg.Prefix + m.topic}, m)
	}

	return errors.Join(err, group.Close(), client.Close())
}

const (
	// maxRejoinWait caps the wait before joining again.
	maxRejoinWait = 5 * time.Second
	// closeTimeout is how long closing a subscription or a Driver waits for the broker
	// before it closes the connections.
	closeTimeout = 3 * time.Second
)

// lost waits before the next attempt to join. The subscription counts as refused until
// then. The error is logged at increasing intervals.
func (m *member) lost(ctx context.Context, err error) {
	m.failures++

	if m.reminder.Due(err) {
		m.logger.Warn("lost the kafka consumer group; rejoining", slog.Any("error", err), slog.Int("attempts", m.failures))
	}

	m.driver.unjoined.Heard(m.topic, m.refusal(err)) // the library has already tried for a few seconds
	_ = backoff.Sleep(ctx, backoff.Jitter(min(time.Second<<min(m.failures, 3), maxRejoinWait)))
}

// refusal returns the refusal in an error from joining, or err itself if there is none.
func (m *member) refusal(err error) error {
	if errors.Is(err, sarama.ErrGroupAuthorizationFailed) {
		return &driver.RefusedError{
			Scope: driver.OneTopic, Topic: m.topic, Remedy: "grant the account READ on the consumer group " + m.driver.group(m.topic), Err: err,
		}
	}

	if refused := refusalOf(m.topic, err); refused != nil {
		return refused
	}

	return err
}

// Setup implements sarama.ConsumerGroupHandler. All partitions of a generation share a
// budget, so one partition may use all of it.
func (m *member) Setup(session sarama.ConsumerGroupSession) error {
	if m.reminder.Reset() {
		m.logger.Info("rejoined the kafka consumer group", slog.Int("generation", int(session.GenerationID())))
	}

	m.failures = 0
	m.driver.unjoined.Heard(m.topic, nil)
	m.budget = window.NewBudget(m.driver.cfg.Window, window.MaxBytes)

	return nil
}

// Cleanup implements sarama.ConsumerGroupHandler.
func (m *member) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim implements sarama.ConsumerGroupHandler. Offsets are marked only up to
// the first message in hand.
func (m *member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	ctx, end := context.WithCancel(session.Context()) // a claim may end before its session
	hand := window.New(ctx, m.budget, m.out, window.Acks{UpTo: func(offset int64) {
		session.MarkOffset(claim.Topic(), claim.Partition(), offset+1, "")
	}})

	defer hand.Wait()
	defer end()

	for {
		select {
		case record, open := <-claim.Messages():
			if !open {
				return nil
			}

			msg := Unmarshal(record)
			if !hand.Add(msg, driver.KeyOf(msg, m.key), record.Offset) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}
