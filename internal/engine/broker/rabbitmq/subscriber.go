package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/broker/window"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

// shortest is the minimum time between successive subscriptions to a queue.
const shortest = time.Second

// renewInterval is how long a subscription gets nothing until it is renewed. If a quorum
// queue is deleted and immediately created again by somebody else, RabbitMQ moves its
// consumers to the new queue without telling them, gives them messages there, and never
// sends these. A new channel gets them.
const renewInterval = time.Minute

// subscriber keeps many messages of a queue in hand on one channel; Watermill's keeps
// one.
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
		Subscription: driver.NewSubscription(), driver: d, topic: topic, key: key, logger: d.logger.With(slog.String("topic", topic)),
	}, nil
}

// Subscribe implements message.Subscriber.
func (s *subscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	return s.Run(ctx, func(ctx context.Context, out chan<- *message.Message) {
		// Sessions that have ended may still have messages in hand.
		var over sync.WaitGroup
		defer over.Wait()

		for ctx.Err() == nil {
			started := time.Now()

			if session := s.open(ctx, out); session != nil {
				err := session.consume()
				if errors.Is(err, errRenew) {
					session.end()

					continue
				}

				if ctx.Err() == nil {
					s.logger.Warn("the subscription has ended; resubscribing", slog.Any("error", err))
				}

				if errors.Is(err, errCancelled) {
					s.driver.topology.forget(queueKind + s.topic)

					// The channel is still open, so the broker has not taken back its
					// deliveries.
					session.end()
				} else {
					over.Go(session.end)
				}

				_ = backoff.Sleep(ctx, settle)
			}

			_ = backoff.Sleep(ctx, shortest-time.Since(started))
		}
	}), nil
}

// open opens a session, trying until ctx ends. The connection logs its own loss; open
// logs what concerns only the topic.
func (s *subscriber) open(ctx context.Context, out chan<- *message.Message) (opened *session) {
	var reminder backoff.Reminder

	_ = backoff.Until(ctx, func() error {
		l, err := s.driver.consumers.wait(ctx)
		if err != nil {
			return backoff.Final(err)
		}

		opened, err = s.subscribe(ctx, l, out)

		if !l.IsClosed() {
			s.driver.refusals.Heard(s.topic, err)
		}

		if err != nil && !l.IsClosed() && ctx.Err() == nil && reminder.Due(err) {
			s.logger.Warn("cannot subscribe; retrying", slog.Any("error", err))
		}

		return err
	})

	if opened != nil && reminder.Reset() {
		s.logger.Info("subscribed")
	}

	return opened
}

// subscribe opens a channel and subscribes to the topic's queue.
func (s *subscriber) subscribe(ctx context.Context, l *live, out chan<- *message.Message) (*session, error) {
	if err := s.driver.topology.ensureTopic(l, driver.Topic{Name: s.topic, Consumed: true}); err != nil {
		return nil, err
	}

	s.driver.topology.report()

	channel, err := l.Channel()
	if err != nil {
		return nil, fmt.Errorf("opening channel: %w", err)
	}

	session := &session{driver: s.driver, topic: s.topic, channel: channel, key: s.key, passOn: make(chan struct{}, 1)}
	session.ctx, session.stop = context.WithCancelCause(ctx)
	session.watch()

	if err = channel.Qos(s.driver.cfg.Window, 0, false); err == nil {
		session.deliveries, err = channel.Consume(s.topic, "", false, false, false, false, nil)
	}

	if err != nil {
		session.stop(err)
		closeChannel(channel)

		return nil, sorted(fmt.Errorf("subscribing to queue %s: %w", s.topic, err), s.topic,
			"allow the account to read queue "+s.topic+", or correct the queue at the broker")
	}

	session.acker = newAcker(channel)
	session.hand = window.New(session.ctx, window.NewBudget(s.driver.cfg.Window, window.MaxBytes), out,
		window.Acks{UpTo: session.acker.upTo, One: session.acker.one})
	s.driver.sharing.add(session)

	go session.renew(s.driver.renewAfter)

	return session, nil
}

// session is a subscription that lasts at most as long as its channel.
type session struct {
	driver     *Driver
	topic      string
	channel    *amqp091.Channel
	deliveries <-chan amqp091.Delivery
	key        func(payload []byte) string
	hand       *window.Window
	acker      *acker
	// received counts the messages that the broker has delivered.
	received atomic.Int64
	// passOn asks the session to end for another replica.
	passOn chan struct{}

	// ctx ends when the subscription does; its cause says why.
	ctx  context.Context //nolint:containedctx // it is the lifetime of the session
	stop context.CancelCauseFunc
}

// errCancelled reports that the broker has ended a subscription without closing its
// channel.
var errCancelled = errors.New("rabbitmq cancelled the subscription: the queue was deleted or moved")

// errRenew reports that a subscription ends to be renewed, behind those of other replicas.
var errRenew = errors.New("the subscription is renewed")

// heldFor is how many renewal intervals a message may be in hand before the subscription is
// renewed. It must be less than RabbitMQ's consumer_timeout, 30 minutes by default, after
// which RabbitMQ 4.3 returns that message but not those behind it, so that another replica
// could get later ones first. A new subscription gets all of them, in order.
const heldFor = 20

// watch ends the session when the broker ends the subscription.
func (s *session) watch() {
	closed := s.channel.NotifyClose(make(chan *amqp091.Error, 1))
	cancelled := s.channel.NotifyCancel(make(chan string, 1))

	go func() {
		select {
		case err := <-closed:
			if err == nil {
				s.stop(driver.ErrClosed)
			} else {
				s.stop(err)
			}
		case <-cancelled:
			s.stop(errCancelled)
		case <-s.ctx.Done():
		}
	}()
}

// renew ends the session if it has got nothing for an interval and has nothing in hand, or
// if a message has been in hand for too many intervals. It has a goroutine of its own,
// because consume waits while the window is full.
func (s *session) renew(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()

	var (
		received int64 // at the last tick
		oldest   int64 // the first message in hand
		ticks    int   // since it has been the first
	)

	for {
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}

		now := s.received.Load()

		first, inHand := s.hand.First()
		if first != oldest {
			oldest, ticks = first, 0
		}

		ticks++

		if !inHand && now == received || inHand && ticks > heldFor {
			s.stop(errRenew)
		}

		received = now
	}
}

// consume passes messages on until the session ends, and returns why it ended.
func (s *session) consume() error {
	for {
		select {
		case <-s.passOn:
			if s.drained() {
				return errRenew
			}
		case delivery, open := <-s.deliveries:
			if !open {
				<-s.ctx.Done()

				return context.Cause(s.ctx)
			}

			s.received.Add(1)

			msg := Unmarshal(delivery)
			if !s.hand.Add(msg, driver.KeyOf(msg, s.key), int64(delivery.DeliveryTag)) { //nolint:gosec // a count
				return context.Cause(s.ctx)
			}
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// drainLimit bounds how long a queue rests before it is passed on.
const drainLimit = 5 * time.Second

// drained takes no more messages until those in hand are finished. It reports false if that
// takes too long.
func (s *session) drained() bool {
	ticker, limit := time.NewTicker(5*time.Millisecond), time.NewTimer(drainLimit)
	defer ticker.Stop()
	defer limit.Stop()

	for {
		if _, inHand := s.hand.First(); !inHand {
			return true
		}

		select {
		case <-ticker.C:
		case <-limit.C:
			return false
		case <-s.ctx.Done():
			return false
		}
	}
}

// end waits for messages in hand, acknowledges them and closes the channel.
// Unacknowledged messages are redelivered.
func (s *session) end() {
	s.stop(driver.ErrClosed)
	s.driver.sharing.remove(s)
	s.hand.Wait()
	s.acker.close()
	closeChannel(s.channel)
}

// acker acknowledges on its own goroutine, so that nobody waits for the network, and
// one acknowledgement covers all messages finished since the last one.
type acker struct {
	channel *amqp091.Channel
	wake    chan struct{}
	done    chan struct{}

	mu     sync.Mutex
	prefix int64
	single []int64
	closed bool
}

func newAcker(channel *amqp091.Channel) *acker {
	a := &acker{channel: channel, wake: make(chan struct{}, 1), done: make(chan struct{})}

	go func() {
		defer close(a.done)

		for a.acknowledge() {
			<-a.wake
		}
	}()

	return a
}

// upTo acknowledges all messages up to a delivery tag.
func (a *acker) upTo(tag int64) {
	a.mu.Lock()
	a.prefix = tag
	a.mu.Unlock()
	a.nudge()
}

// one acknowledges a single message.
func (a *acker) one(tag int64) {
	a.mu.Lock()
	a.single = append(a.single, tag)
	a.mu.Unlock()
	a.nudge()
}

func (a *acker) nudge() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// acknowledge sends the outstanding acknowledgements. It reports false after close.
// Errors are ignored, because they close the channel, which ends the session.
func (a *acker) acknowledge() bool {
	a.mu.Lock()
	prefix, single, closed := a.prefix, a.single, a.closed
	a.prefix, a.single = 0, nil
	a.mu.Unlock()

	for _, tag := range single {
		if tag > prefix { // acknowledging twice would close the channel
			_ = a.channel.Ack(uint64(tag), false) //nolint:gosec // a count
		}
	}

	if prefix > 0 {
		_ = a.channel.Ack(uint64(prefix), true)

		crashpoint.At(crashpoint.RabbitMQAcked)
	}

	return !closed
}

// close sends the outstanding acknowledgements and ends the goroutine. It does not wait
// for a broker that does not read.
func (a *acker) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.nudge()

	select {
	case <-a.done:
	case <-time.After(closeTimeout):
	}
}
