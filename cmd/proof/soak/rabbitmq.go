package soak

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// rabbitmq is a producer, a reader of queues that nobody consumes, and an observer of
// queues.
type rabbitmq struct {
	server  *server.Broker
	conn    *amqp.Connection
	channel *amqp.Channel
}

func openRabbitMQ(server *server.Broker) (*rabbitmq, error) {
	conn, err := amqp.Dial(server.Address())
	if err != nil {
		return nil, err
	}

	channel, err := conn.Channel()
	if err != nil {
		return nil, err
	}

	return &rabbitmq{server: server, conn: conn, channel: channel}, channel.Confirm(false)
}

// publish sends messages to the queues directly, and waits until they are confirmed.
func (r *rabbitmq) publish(ctx context.Context, list []outgoing) error {
	confirmations := make([]*amqp.DeferredConfirmation, len(list))

	for i, o := range list {
		message := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(o.payload)}
		if o.id != uuid.Nil {
			message.MessageId = o.id.String()
		}

		var err error
		if confirmations[i], err = r.channel.PublishWithDeferredConfirm("", o.topic, true, false, message); err != nil {
			return err
		}
	}

	for i, c := range confirmations {
		if taken, err := c.WaitContext(ctx); err != nil || !taken {
			return fmt.Errorf("rabbitmq did not confirm a message for topic %s: %w", list[i].topic, err)
		}
	}

	return nil
}

// rebalance closes some of the service's connections. RabbitMQ then delivers
// unacknowledged messages to any consumer.
func (r *rabbitmq) rebalance(ctx context.Context, random *rand.Rand) (string, error) {
	listed, err := r.server.Control(ctx, "list_connections", "pid", "client_properties")
	if err != nil {
		return "", err
	}

	var pids []string

	for lines := bufio.NewScanner(bytes.NewReader(listed)); lines.Scan(); {
		if pid, properties, ok := strings.Cut(lines.Text(), "\t"); ok && strings.Contains(properties, "millrace ") {
			pids = append(pids, pid)
		}
	}

	if len(pids) == 0 {
		return "", fmt.Errorf("the service has no connections: %s", listed)
	}

	random.Shuffle(len(pids), func(i, j int) { pids[i], pids[j] = pids[j], pids[i] })
	pids = pids[:1+random.IntN(min(2, len(pids)))] // rabbitmqctl takes a second for each

	for _, pid := range pids {
		// This fails if the connection has already ended on its own.
		if _, err := r.server.Control(ctx, "close_connection", pid, "soak"); err != nil && ctx.Err() != nil {
			return "", err
		}
	}

	return fmt.Sprintf("%d connections were closed", len(pids)), nil
}

// queue returns the number of ready messages in a queue, and the number of its consumers.
func (r *rabbitmq) queue(name string) (ready, consumers int, err error) {
	q, err := r.channel.QueueDeclarePassive(name, true, false, false, false, nil)

	return q.Messages, q.Consumers, err
}

// abandoned waits until RabbitMQ has noticed that nobody consumes the queue, and
// returns the number of messages in it. All of them are ready by then, because
// unacknowledged messages are back in the queue.
func (r *rabbitmq) abandoned(ctx context.Context, name string) (messages int, err error) {
	err = until(ctx, "the end of the consumers of queue "+name, func() (bool, error) {
		var consumers int

		messages, consumers, err = r.queue(name)

		return consumers == 0, err
	})

	return messages, err
}

// backlog returns the number of ready messages on consumed topics.
func (r *rabbitmq) backlog(context.Context) (int, error) {
	sum := 0

	for topic := range consumers {
		ready, _, err := r.queue(topic)
		if err != nil {
			return 0, err
		}

		sum += ready
	}

	return sum, nil
}

// published takes all messages from the queue of a topic that nobody consumes.
func (r *rabbitmq) published(ctx context.Context, topic string) ([]record, error) {
	messages, err := r.abandoned(ctx, topic)
	if err != nil {
		return nil, err
	}

	channel, err := r.conn.Channel()
	if err != nil {
		return nil, err
	}
	defer func() { _ = channel.Close() }()

	deliveries, err := channel.Consume(topic, "", true, true, false, false, nil)
	if err != nil {
		return nil, err
	}

	var list []record

	for len(list) < messages {
		select {
		case d, open := <-deliveries:
			if !open {
				return nil, errors.New("rabbitmq closed the channel while queue " + topic + " was read")
			}

			id, _ := uuid.Parse(d.MessageId)
			list = append(list, record{place: place{topic: topic}, offset: int64(len(list)), id: id, value: d.Body})
		case <-time.After(patience):
			return nil, fmt.Errorf("queue %s returned %d of %d messages", topic, len(list), messages)
		}
	}

	return list, nil
}

func (r *rabbitmq) close() { _ = r.conn.Close() }
