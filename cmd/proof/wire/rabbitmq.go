package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// RabbitMQ is a producer, a reader of queues that nobody consumes, and an observer of
// queues.
type RabbitMQ struct {
	server  *server.Broker
	conn    *amqp.Connection
	channel *amqp.Channel
}

// OpenRabbitMQ connects to a broker.
func OpenRabbitMQ(server *server.Broker) (*RabbitMQ, error) {
	r := &RabbitMQ{server: server}

	return r, r.Reset()
}

// resetTimeout bounds connecting, and closing a connection that may have failed.
const resetTimeout = 3 * time.Second

// Reset implements Broker.
func (r *RabbitMQ) Reset() error {
	conn, err := amqp.DialConfig(r.server.Address(), amqp.Config{Dial: amqp.DefaultDial(resetTimeout), Heartbeat: 10 * time.Second, Locale: "en_US"})
	if err != nil {
		return err
	}

	channel, err := conn.Channel()
	if err != nil {
		return errors.Join(err, conn.Close())
	}

	if r.conn != nil {
		_ = r.conn.CloseDeadline(time.Now().Add(resetTimeout)) // it may have failed, or be blocked
	}

	r.conn, r.channel = conn, channel

	return channel.Confirm(false)
}

// Observe declares a queue that gets a copy of everything that the service publishes.
func (r *RabbitMQ) Observe(queue, exchange string) error {
	if _, err := r.channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return err
	}

	for _, topic := range append(slices.Collect(maps.Keys(Consumers)), Outputs...) {
		if err := r.channel.QueueBind(queue, topic, exchange, false, nil); err != nil {
			return err
		}
	}

	return nil
}

// Publish sends messages to the queues directly, and waits until they are confirmed.
func (r *RabbitMQ) Publish(ctx context.Context, list []Message) error {
	confirmations := make([]*amqp.DeferredConfirmation, len(list))

	for i, o := range list {
		message := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: o.Payload, Headers: amqp.Table{NumberHeader: strconv.Itoa(o.Number)}}
		if o.ID != uuid.Nil {
			message.MessageId = o.ID.String()
		}

		var err error
		if confirmations[i], err = r.channel.PublishWithDeferredConfirm("", o.Topic, true, false, message); err != nil {
			return err
		}
	}

	for i, c := range confirmations {
		if taken, err := c.WaitContext(ctx); err != nil || !taken {
			return fmt.Errorf("rabbitmq did not confirm a message for topic %s: %w", list[i].Topic, err)
		}
	}

	return nil
}

// Rebalance closes some of the service's connections. RabbitMQ then delivers
// unacknowledged messages to any consumer.
func (r *RabbitMQ) Rebalance(ctx context.Context, random *rand.Rand) (string, error) {
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
		if _, err := r.server.Control(ctx, "close_connection", pid, "proof"); err != nil && ctx.Err() != nil {
			return "", err
		}
	}

	return fmt.Sprintf("%d connections were closed", len(pids)), nil
}

// queue returns the number of ready messages in a queue, and the number of its consumers.
func (r *RabbitMQ) queue(name string) (ready, consumers int, err error) {
	q, err := r.channel.QueueDeclarePassive(name, true, false, false, false, nil)

	return q.Messages, q.Consumers, err
}

// Abandoned waits until RabbitMQ has noticed that nobody consumes the queue, and
// returns the number of messages in it. All of them are ready by then, because
// unacknowledged messages are back in the queue.
func (r *RabbitMQ) Abandoned(ctx context.Context, name string) (messages int, err error) {
	err = until(ctx, "the end of the consumers of queue "+name, func() (bool, error) {
		var consumers int

		messages, consumers, err = r.queue(name)

		return consumers == 0, err
	})

	return messages, err
}

// Backlog returns the number of ready messages on consumed topics.
func (r *RabbitMQ) Backlog(context.Context) (int, error) {
	sum := 0

	for topic := range Consumers {
		ready, _, err := r.queue(topic)
		if err != nil {
			return 0, err
		}

		sum += ready
	}

	return sum, nil
}

// Published takes all messages from the queue of a topic that nobody consumes.
func (r *RabbitMQ) Published(ctx context.Context, topic string) ([]Record, error) {
	messages, err := r.Abandoned(ctx, topic)
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

	var list []Record

	for len(list) < messages {
		select {
		case d, open := <-deliveries:
			if !open {
				return nil, errors.New("rabbitmq closed the channel while queue " + topic + " was read")
			}

			id, _ := uuid.Parse(d.MessageId)
			cause, _ := d.Headers["causation_id"].(string)
			causation, _ := uuid.Parse(cause)
			list = append(list, Record{Place: Place{Topic: d.RoutingKey}, Offset: int64(len(list)), ID: id, Causation: causation, Value: d.Body})
		case <-time.After(patience):
			return nil, fmt.Errorf("queue %s returned %d of %d messages", topic, len(list), messages)
		}
	}

	return list, nil
}

// Close implements Broker.
func (r *RabbitMQ) Close() { _ = r.conn.Close() }
