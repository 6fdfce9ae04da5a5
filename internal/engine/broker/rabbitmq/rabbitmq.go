// Package rabbitmq connects to RabbitMQ.
package rabbitmq

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// Driver is a connection to RabbitMQ.
type Driver struct {
	cfg    Config
	logger *slog.Logger

	publishing, consumers *connection
	topology              *topology
	publisher             *publisher
	refusals              driver.Refusals
	restoring             singleflight.Group
	upkeep                upkeep
	sharing               sharing
	// renewAfter is renewInterval, except in tests.
	renewAfter time.Duration
}

// New returns a connection that is not yet established.
func New(cfg Config, logger *slog.Logger) *Driver {
	d := &Driver{
		cfg: cfg, logger: logger,
		publishing: newConnection(cfg, "publisher", logger), consumers: newConnection(cfg, "consumers", logger),
		topology: &topology{cfg: cfg, logger: logger, compared: map[string]bool{}}, renewAfter: renewInterval,
		sharing: sharing{sessions: map[*session]int64{}},
	}
	d.publisher = &publisher{driver: d}

	return d
}

// Lanes implements driver.Driver.
func (d *Driver) Lanes() int { return d.cfg.Lanes }

// Run implements driver.Driver. RabbitMQ confirms and refuses messages one by one, so what
// is behind one that it refuses would be published.
func (d *Driver) Run() int { return 1 }

// Publisher implements driver.Driver.
func (d *Driver) Publisher() message.Publisher { return d.publisher }

// Connect implements driver.Driver. A topic whose queue the broker refuses does not stop
// the others: subscribing and publishing are retried.
func (d *Driver) Connect(ctx context.Context, topics []driver.Topic) error {
	d.topology.use(topics)

	l, err := d.publishing.open(ctx)
	if err != nil {
		return err
	}

	if _, err := d.consumers.open(ctx); err != nil {
		return err
	}

	return d.declare(ctx, l, topics)
}

// declareAtOnce is the number of queues declared concurrently. Each takes several round
// trips.
const declareAtOnce = 8

// declare creates what is missing before the first message is published. It returns an
// error only if the connection is lost or ctx ends.
func (d *Driver) declare(ctx context.Context, l *live, topics []driver.Topic) error {
	note := func(err error) {
		if err != nil && !l.IsClosed() {
			d.logger.Warn("cannot use part of the topology; the rest is not affected", because(err)...)
		}
	}

	note(d.topology.ensureExchange(l, ""))
	note(d.topology.ensureDropped(l))

	var declaring errgroup.Group

	declaring.SetLimit(declareAtOnce)

	for _, topic := range topics {
		declaring.Go(func() error {
			note(d.topology.ensureTopic(l, topic))

			return nil
		})
	}

	_ = declaring.Wait()

	d.topology.report()

	if l.IsClosed() {
		return driver.ErrClosed
	}

	return ctx.Err()
}

// because returns why a part of the topology cannot be used. The part need not be a
// topic, so the text does not name one.
func because(err error) []any {
	if refusal, is := errors.AsType[*driver.RefusedError](err); is {
		return []any{slog.Any("error", refusal.Err), slog.String("remedy", refusal.Remedy)}
	}

	return []any{slog.Any("error", err)}
}

// settle is how long we leave a deleted queue deleted. If it is recreated immediately,
// RabbitMQ 3.10 resubscribes its consumers and then delivers nothing to them.
const settle = 500 * time.Millisecond

// restore creates the exchange and a topic's queue again if they were deleted. It uses
// the consumers' connection: during an alarm, RabbitMQ does not read from the
// publisher's.
func (d *Driver) restore(ctx context.Context, topic string) error {
	_, err, _ := d.restoring.Do(topic, func() (any, error) {
		l, err := d.consumers.open(ctx)
		if err != nil {
			return nil, err
		}

		if err := d.topology.ensureExchange(l, topic); err != nil {
			return nil, err
		}

		time.Sleep(settle)

		return nil, d.topology.ensureTopic(l, d.topology.topic(topic))
	})

	return err
}

// Ping implements driver.Driver. It reconnects if a connection is lost, and checks
// the topology periodically.
func (d *Driver) Ping(ctx context.Context) error {
	l, err := d.publishing.open(ctx)
	if err != nil {
		return err
	}

	consumers, err := d.consumers.open(ctx)
	if err != nil {
		return err
	}

	d.look(consumers) // during an alarm, RabbitMQ does not read from the publisher's

	return l.alarm()
}

// Refusals implements driver.Driver.
func (d *Driver) Refusals() []driver.Refusal { return d.refusals.List() }

// Close implements driver.Driver.
func (d *Driver) Close() error {
	d.publishing.close()
	d.consumers.close()

	return nil
}
