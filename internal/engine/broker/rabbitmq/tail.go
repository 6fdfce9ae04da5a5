package rabbitmq

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Tail implements driver.Tailer. It binds its own queue to the exchange, so it does
// not see messages that others send directly to the topic's queue.
func (d *Driver) Tail(ctx context.Context, topic string, fn func(*message.Message) error) error {
	cfg, err := d.config()
	if err != nil {
		return err
	}

	conn, err := amqp091.DialTLS(string(d.cfg.URL), cfg.Connection.TLSConfig)
	if err != nil {
		return fmt.Errorf("reaching rabbitmq: %w", err)
	}
	defer conn.Close() //nolint:errcheck // only reads

	channel, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening channel: %w", err)
	}

	if err := d.declareExchange(channel); err != nil {
		return err
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
		msg, err := (Marshaler{}).Unmarshal(delivery)
		if err == nil {
			err = fn(msg)
		}

		if err != nil {
			return err
		}
	}

	if ctx.Err() == nil {
		return errors.New("rabbitmq closed the connection")
	}

	return nil
}
