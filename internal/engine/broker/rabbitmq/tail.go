package rabbitmq

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Tail implements driver.Tailer. It binds its own queue to the exchange, so it does
// not see messages that others send directly to the topic's queue.
func (d *Driver) Tail(ctx context.Context, topic string, fn func(*message.Message) error) error {
	l, err := dial(ctx, d.cfg, "tail")
	if err != nil {
		return err
	}
	defer l.close()

	if err := d.topology.ensureExchange(l, topic); err != nil {
		return err
	}

	channel, err := l.Channel()
	if err != nil {
		return fmt.Errorf("opening channel: %w", err)
	}

	queue, err := channel.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return fmt.Errorf("declaring queue: %w", err)
	}

	if err := channel.QueueBind(queue.Name, topic, d.cfg.Exchange, false, nil); err != nil {
		return fmt.Errorf("binding queue: %w", err)
	}

	deliveries, err := channel.ConsumeWithContext(ctx, queue.Name, "", true, true, false, false, nil)
	if err != nil {
		return fmt.Errorf("reading topic %s: %w", topic, err)
	}

	for delivery := range deliveries {
		if err := fn(Unmarshal(delivery)); err != nil {
			return err
		}
	}

	if ctx.Err() == nil {
		return errors.New("rabbitmq closed the connection")
	}

	return nil
}
