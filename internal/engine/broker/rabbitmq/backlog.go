package rabbitmq

import (
	"cmp"
	"context"
	"fmt"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// Backlogs implements driver.Driver. A topic's backlog is the number of messages ready in
// its queue: AMQP does not say how many are delivered but not yet acknowledged. Its
// subscriptions are the queue's consumers.
func (d *Driver) Backlogs(ctx context.Context, topics []string) (list []driver.Backlog, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	l, err := dial(ctx, d.cfg, "status")
	if err != nil {
		return nil, err
	}
	defer l.close()

	for _, topic := range topics {
		b := driver.Backlog{Topic: topic}

		err := onChannel(l, func(ch *amqp091.Channel) error {
			queue, err := ch.QueueDeclarePassive(topic, true, false, false, false, nil)
			b.Messages, b.Subscriptions = int64(queue.Messages), queue.Consumers

			return err
		})
		if err != nil {
			b.Err = fmt.Errorf("reading queue %s: %w", topic, cmp.Or(ctx.Err(), err))
		}

		list = append(list, b)
	}

	return list, nil
}
