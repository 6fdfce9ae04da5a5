package rabbitmq

import (
	"cmp"
	"context"
	"fmt"

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
		queue, err := inspect(l, topic)
		b := driver.Backlog{Topic: topic, Messages: int64(queue.Messages), Subscriptions: queue.Consumers}

		if err != nil {
			b.Err = fmt.Errorf("reading queue %s: %w", topic, cmp.Or(ctx.Err(), err))
		}

		list = append(list, b)
	}

	return list, nil
}
