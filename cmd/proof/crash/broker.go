package crash

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"
)

// consumed are the topics that the service consumes.
var consumed = []string{
	ordersCreated, "payments.requested", "orders.completed", cancelRequested, "orders.expiry.due", "payments.refund.requested",
	"payments.reported", "inventory.restocked", userCreated, userUpdated, "user.events", "notifications", "notifications.email",
	"notifications.webhook", "notifications.log", "analytics.track",
}

// record is a message on a topic.
type record struct {
	id    uuid.UUID
	value []byte
}

// broker is a producer and an observer of a broker. Each run has its own topics.
type broker interface {
	// publish returns once the broker has confirmed all messages.
	publish(ctx context.Context, list []outgoing) error
	// backlog describes what is not acknowledged. Unless ended is true, a process runs, and
	// RabbitMQ does not count what the process has in hand.
	backlog(ctx context.Context, ended bool) ([]string, error)
	// published returns what is on a topic that the service does not consume, in order per
	// key. The embedded broker keeps nothing.
	published(ctx context.Context, topic string) ([]record, error)
	// close deletes the topics.
	close()
}

// embedded inserts rows into the outbox.
type embedded struct{ db *pgxpool.Pool }

func (e embedded) publish(ctx context.Context, list []outgoing) error {
	return pgx.BeginFunc(ctx, e.db, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue(`SELECT pg_current_xact_id()`) // the transaction needs its id before its first sequence number

		for _, o := range list {
			h := fnv.New32a()
			_, _ = h.Write([]byte(o.key))
			batch.Queue(`INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload) VALUES ($1, $2, $3, $4, $4, $5)`,
				int16(h.Sum32()%64), o.topic, o.key, o.id, []byte(o.payload))
		}

		batch.Queue(`SELECT pg_notify('millrace_outbox', '')`)

		return tx.SendBatch(ctx, batch).Close()
	})
}

func (embedded) backlog(context.Context, bool) ([]string, error)     { return nil, nil }
func (embedded) published(context.Context, string) ([]record, error) { return nil, nil }
func (embedded) close()                                              {}

// kafka has topics and groups with a prefix.
type kafka struct {
	prefix   string
	client   sarama.Client
	admin    sarama.ClusterAdmin
	producer sarama.SyncProducer
}

func openKafka(address, prefix string) (*kafka, error) {
	cfg := sarama.NewConfig()
	cfg.ClientID, cfg.Version = "proof", sarama.V3_0_0_0
	cfg.Producer.Return.Successes, cfg.Producer.RequiredAcks = true, sarama.WaitForAll
	cfg.Producer.Idempotent, cfg.Net.MaxOpenRequests = true, 1 // in order, and once
	cfg.Consumer.MaxWaitTime = 50 * time.Millisecond

	client, err := sarama.NewClient([]string{address}, cfg)
	if err != nil {
		return nil, err
	}

	k := &kafka{prefix: prefix, client: client}

	if k.admin, err = sarama.NewClusterAdminFromClient(client); err != nil {
		return nil, err
	}

	k.producer, err = sarama.NewSyncProducerFromClient(client)

	return k, err
}

func (k *kafka) publish(_ context.Context, list []outgoing) error {
	messages := make([]*sarama.ProducerMessage, len(list))

	for i, o := range list {
		messages[i] = &sarama.ProducerMessage{
			Topic: k.prefix + o.topic, Key: sarama.StringEncoder(o.key), Value: sarama.StringEncoder(o.payload),
			Headers: []sarama.RecordHeader{{Key: []byte("_watermill_message_uuid"), Value: []byte(o.id.String())}},
		}
	}

	return k.producer.SendMessages(messages)
}

func (k *kafka) backlog(context.Context, bool) (list []string, err error) {
	for _, topic := range consumed {
		group := k.prefix + topic

		offsets, err := k.admin.ListConsumerGroupOffsets(group, nil)
		if err != nil {
			return nil, err
		}

		partitions, err := k.client.Partitions(k.prefix + topic)
		if err != nil {
			return nil, err
		}

		for _, p := range partitions {
			end, err := k.client.GetOffset(k.prefix+topic, p, sarama.OffsetNewest)
			if err != nil {
				return nil, err
			}

			at := int64(0)
			if block := offsets.GetBlock(k.prefix+topic, p); block != nil {
				at = max(block.Offset, 0)
			}

			if at < end {
				list = append(list, fmt.Sprintf("%s/%d: committed %d of %d", topic, p, at, end))
			}
		}
	}

	return list, nil
}

func (k *kafka) published(ctx context.Context, topic string) (all []record, err error) {
	consumer, err := sarama.NewConsumerFromClient(k.client)
	if err != nil {
		return nil, err
	}
	defer func() { _ = consumer.Close() }()

	partitions, err := k.client.Partitions(k.prefix + topic)
	if err != nil {
		return nil, err
	}

	for _, p := range partitions {
		end, err := k.client.GetOffset(k.prefix+topic, p, sarama.OffsetNewest)
		if err != nil {
			return nil, err
		}

		if end == 0 {
			continue
		}

		list, err := read(ctx, consumer, k.prefix+topic, p, end)
		if err != nil {
			return nil, err
		}

		all = append(all, list...)
	}

	return all, nil
}

func read(ctx context.Context, consumer sarama.Consumer, topic string, partition int32, end int64) (list []record, err error) {
	claim, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = claim.Close() }()

	for {
		select {
		case m := <-claim.Messages():
			r := record{value: m.Value}

			for _, h := range m.Headers {
				if string(h.Key) == "ce_id" {
					r.id, _ = uuid.ParseBytes(h.Value)
				}
			}

			list = append(list, r)

			if m.Offset+1 >= end {
				return list, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (k *kafka) close() {
	topics, err := k.admin.ListTopics()
	if err == nil {
		for topic := range topics {
			if strings.HasPrefix(topic, k.prefix) {
				_ = k.admin.DeleteTopic(topic)
			}
		}
	}

	_ = k.producer.Close()
	_ = k.admin.Close() // and the client
}

// rabbitmq has a virtual host.
type rabbitmq struct {
	conn    *amqp.Connection
	channel *amqp.Channel
}

func openRabbitMQ(address string) (*rabbitmq, error) {
	conn, err := amqp.Dial(address)
	if err != nil {
		return nil, err
	}

	channel, err := conn.Channel()
	if err != nil {
		return nil, err
	}

	return &rabbitmq{conn: conn, channel: channel}, channel.Confirm(false)
}

func (r *rabbitmq) publish(ctx context.Context, list []outgoing) error {
	var confirmations []*amqp.DeferredConfirmation

	for _, o := range list {
		c, err := r.channel.PublishWithDeferredConfirm("", o.topic, true, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: o.id.String(), Body: []byte(o.payload)})
		if err != nil {
			return err
		}

		confirmations = append(confirmations, c)
	}

	for _, c := range confirmations {
		if taken, err := c.WaitContext(ctx); err != nil || !taken {
			return fmt.Errorf("rabbitmq did not confirm a message: %w", err)
		}
	}

	return nil
}

// queue returns the number of messages in a queue: if ended is true, once nobody consumes
// it, so that all that are not acknowledged are back in it.
func (r *rabbitmq) queue(ctx context.Context, name string, ended bool) (n int, err error) {
	for {
		q, err := r.channel.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil || q.Consumers == 0 || !ended {
			return q.Messages, err
		}

		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (r *rabbitmq) backlog(ctx context.Context, ended bool) (list []string, err error) {
	for _, topic := range consumed {
		n, err := r.queue(ctx, topic, ended)
		if err != nil {
			return nil, err
		}

		if n > 0 {
			list = append(list, fmt.Sprintf("%s has %d messages", topic, n))
		}
	}

	return list, nil
}

func (r *rabbitmq) published(ctx context.Context, topic string) (list []record, err error) {
	n, err := r.queue(ctx, topic, true)
	if err != nil {
		return nil, err
	}

	for range n {
		d, ok, err := r.channel.Get(topic, true)
		if err != nil || !ok {
			return nil, errors.Join(fmt.Errorf("queue %s returned %d of %d messages", topic, len(list), n), err)
		}

		id, _ := uuid.Parse(d.MessageId)
		list = append(list, record{id, d.Body})
	}

	return list, nil
}

func (r *rabbitmq) close() { _ = r.conn.Close() }
