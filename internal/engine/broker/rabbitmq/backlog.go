package rabbitmq

import (
	"cmp"
	"context"
	"fmt"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// lookTimeout bounds connecting in Backlogs; its context bounds the rest.
const lookTimeout = 3 * time.Second

// Backlogs implements driver.Driver. The backlog of a topic is the messages that are
// ready in its queue: AMQP does not tell how many are delivered and not yet
// acknowledged. Its subscriptions are the queue's consumers.
func (d *Driver) Backlogs(ctx context.Context, topics []string) (list []driver.Backlog, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	cfg, err := d.config()
	if err != nil {
		return nil, err
	}

	conn, err := amqp091.DialConfig(string(d.cfg.URL), amqp091.Config{
		TLSClientConfig: cfg.Connection.TLSConfig, Dial: driver.NewDialer(ctx, lookTimeout),
	})
	if err != nil {
		return nil, fmt.Errorf("reaching rabbitmq: %w", cmp.Or(ctx.Err(), err))
	}
	defer conn.Close() //nolint:errcheck // it was only read from

	var channel *amqp091.Channel

	for _, topic := range topics {
		if channel == nil || channel.IsClosed() { // an error closes it
			if channel, err = conn.Channel(); err != nil {
				return nil, fmt.Errorf("opening channel: %w", cmp.Or(ctx.Err(), err))
			}
		}

		b := driver.Backlog{Topic: topic}

		if queue, err := channel.QueueDeclarePassive(topic, true, false, false, false, nil); err != nil {
			b.Err = fmt.Errorf("reading queue %s: %w", topic, cmp.Or(ctx.Err(), err))
		} else {
			b.Messages, b.Subscriptions = int64(queue.Messages), queue.Consumers
		}

		list = append(list, b)
	}

	return list, nil
}
