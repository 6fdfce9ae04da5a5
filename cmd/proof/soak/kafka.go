package soak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"
)

// place is a partition of a topic.
type place struct {
	topic     string
	partition int32
}

func (p place) String() string { return fmt.Sprintf("%s/%d", p.topic, p.partition) }

// record is a message on a topic.
type record struct {
	place

	offset int64
	id     uuid.UUID
	at     time.Time
	value  []byte
}

// groupPrefix precedes the topic in the names of the service's consumer groups.
const groupPrefix = "millrace."

// patience is how long a step waits for the broker or the service to make progress.
const patience = 3 * time.Minute

// kafka is a producer, a reader of all topics, and an observer of consumer groups.
type kafka struct {
	address  string
	client   sarama.Client
	admin    sarama.ClusterAdmin
	producer sarama.SyncProducer
	consumer sarama.Consumer

	mu   sync.Mutex
	logs map[place][]record
	next map[place]int64
}

func openKafka(address string) (*kafka, error) {
	cfg := sarama.NewConfig()
	cfg.ClientID, cfg.Version = "soak", sarama.V3_0_0_0
	cfg.Producer.Return.Successes, cfg.Producer.RequiredAcks = true, sarama.WaitForAll
	cfg.Producer.Idempotent, cfg.Net.MaxOpenRequests = true, 1 // a creation is sent exactly twice
	cfg.Consumer.IsolationLevel = sarama.ReadCommitted
	// A connection answers requests one by one, and each fetch waits this long.
	cfg.Consumer.MaxWaitTime = 50 * time.Millisecond

	k := &kafka{address: address, logs: map[place][]record{}, next: map[place]int64{}}
	servers := []string{address}

	var errs [4]error

	k.client, errs[0] = sarama.NewClient(servers, cfg)
	k.admin, errs[1] = sarama.NewClusterAdmin(servers, cfg)
	k.producer, errs[2] = sarama.NewSyncProducer(servers, cfg)
	k.consumer, errs[3] = sarama.NewConsumer(servers, cfg)

	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}

	return k, k.readAll()
}

// readAll starts reading all topics from the beginning.
func (k *kafka) readAll() error {
	topics, err := k.admin.ListTopics()
	if err != nil {
		return err
	}

	for topic, detail := range topics {
		if strings.HasPrefix(topic, "__") {
			continue
		}

		for partition := range detail.NumPartitions {
			claim, err := k.consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
			if err != nil {
				return fmt.Errorf("reading topic %s: %w", topic, err)
			}

			go k.read(place{topic, partition}, claim)
		}
	}

	return nil
}

func (k *kafka) read(from place, claim sarama.PartitionConsumer) {
	for m := range claim.Messages() {
		r := record{place: from, offset: m.Offset, id: idOf(m), at: m.Timestamp, value: m.Value}

		k.mu.Lock()
		k.logs[from] = append(k.logs[from], r)
		k.next[from] = m.Offset + 1
		k.mu.Unlock()
	}
}

// namespace is the namespace of ids that the service derives.
var namespace = uuid.MustParse("4f2c5f0e-4f6d-5d0c-9a55-6d1a3a3f5c11")

// idOf returns the id under which the service must know a record: the id in its header,
// or an id derived from where and when it was written.
func idOf(m *sarama.ConsumerMessage) uuid.UUID {
	for _, h := range m.Headers {
		if string(h.Key) != "_watermill_message_uuid" {
			continue
		}

		if id, err := uuid.ParseBytes(h.Value); err == nil {
			return id
		}
	}

	return uuid.NewSHA1(namespace, fmt.Appendf(nil, "origin\x00kafka:%s/%d@%d+%d", m.Topic, m.Partition, m.Offset, m.Timestamp.UnixMilli()))
}

// records returns the records of a partition with offsets in [from, to), once they have
// been read.
func (k *kafka) records(ctx context.Context, p place, from, to int64) ([]record, error) {
	err := until(ctx, fmt.Sprintf("reading %s up to offset %d", p, to), func() (bool, error) {
		k.mu.Lock()
		defer k.mu.Unlock()

		return k.next[p] >= to, nil
	})
	if err != nil {
		return nil, err
	}

	k.mu.Lock()
	defer k.mu.Unlock()

	log := k.logs[p]
	first, _ := slices.BinarySearchFunc(log, from, byOffset)
	last, _ := slices.BinarySearchFunc(log, to, byOffset)

	return slices.Clone(log[first:last]), nil
}

func byOffset(r record, offset int64) int { return cmp.Compare(r.offset, offset) }

// ends returns the offset after the last record of each partition of a topic.
func (k *kafka) ends(topic string) (map[place]int64, error) {
	partitions, err := k.client.Partitions(topic)
	if err != nil {
		return nil, err
	}

	ends := map[place]int64{}

	for _, partition := range partitions {
		if ends[place{topic, partition}], err = k.client.GetOffset(topic, partition, sarama.OffsetNewest); err != nil {
			return nil, err
		}
	}

	return ends, nil
}

// published returns what is on a topic, in order within partitions.
func (k *kafka) published(ctx context.Context, topic string) ([]record, error) {
	ends, err := k.ends(topic)
	if err != nil {
		return nil, err
	}

	var all []record

	for p, end := range ends {
		list, err := k.records(ctx, p, 0, end)
		if err != nil {
			return nil, err
		}

		all = append(all, list...)
	}

	return all, nil
}

// committed returns the offsets that the service's groups have committed.
func (k *kafka) committed() (map[place]int64, error) {
	offsets := map[place]int64{}

	for topic := range consumers {
		partitions, err := k.client.Partitions(topic)
		if err != nil {
			return nil, err
		}

		answer, err := k.admin.ListConsumerGroupOffsets(groupPrefix+topic, map[string][]int32{topic: partitions})
		if err != nil {
			return nil, err
		}

		for _, partition := range partitions {
			block := answer.GetBlock(topic, partition)
			if block == nil {
				return nil, fmt.Errorf("group %s%s returned nothing about partition %d", groupPrefix, topic, partition)
			}

			if !errors.Is(block.Err, sarama.ErrNoError) {
				return nil, block.Err
			}

			offsets[place{topic, partition}] = max(block.Offset, 0) // -1: nothing is committed
		}
	}

	return offsets, nil
}

// unknown returns the service's groups for which the checker knows no consumer.
func (k *kafka) unknown() ([]string, error) {
	groups, err := k.admin.ListConsumerGroups()
	if err != nil {
		return nil, err
	}

	var list []string

	for group := range groups {
		topic, ours := strings.CutPrefix(group, groupPrefix)
		if _, known := consumers[topic]; ours && !known {
			list = append(list, group)
		}
	}

	return list, nil
}

// backlog returns the number of uncommitted records on consumed topics.
func (k *kafka) backlog(context.Context) (int, error) {
	committed, err := k.committed()
	if err != nil {
		return 0, err
	}

	behind := 0

	for topic := range consumers {
		ends, err := k.ends(topic)
		if err != nil {
			return 0, err
		}

		for p, end := range ends {
			behind += int(end - committed[p])
		}
	}

	return behind, nil
}

func (k *kafka) publish(_ context.Context, list []outgoing) error {
	records := make([]*sarama.ProducerMessage, len(list))

	for i, o := range list {
		records[i] = &sarama.ProducerMessage{Topic: o.topic, Value: sarama.StringEncoder(o.payload)}

		if o.key != "" {
			records[i].Key = sarama.StringEncoder(o.key)
		}

		if o.id != uuid.Nil {
			records[i].Headers = []sarama.RecordHeader{{Key: []byte("_watermill_message_uuid"), Value: []byte(o.id.String())}}
		}
	}

	return k.producer.SendMessages(records)
}

// rebalance makes a member from another program join some groups and leave them again.
// This member takes partitions from the service, and commits nothing.
func (k *kafka) rebalance(ctx context.Context, random *rand.Rand) (string, error) {
	topics := []string{ordersCreated, "payments.requested", "orders.completed", userCreated, userUpdated, "notifications"}
	random.Shuffle(len(topics), func(i, j int) { topics[i], topics[j] = topics[j], topics[i] })
	topics = topics[:1+random.IntN(len(topics))]
	stay := time.Duration(random.IntN(500)) * time.Millisecond

	var (
		joining sync.WaitGroup
		errs    = make([]error, len(topics))
	)

	for i, topic := range topics {
		joining.Go(func() { errs[i] = k.visit(ctx, topic, stay) })
	}

	joining.Wait()
	slices.Sort(topics)

	return fmt.Sprintf("a foreign member joined and left %d groups", len(topics)), errors.Join(errs...)
}

// visit joins the group of a topic for a while.
func (k *kafka) visit(ctx context.Context, topic string, stay time.Duration) error {
	ctx, leave := context.WithTimeout(ctx, patience)
	defer leave()

	cfg := sarama.NewConfig()
	cfg.ClientID, cfg.Version = "stranger", sarama.V3_0_0_0
	cfg.Consumer.Offsets.AutoCommit.Enable = false
	cfg.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategySticky()}

	group, err := sarama.NewConsumerGroup([]string{k.address}, groupPrefix+topic, cfg)
	if err != nil {
		return err
	}

	v := visitor(func() { time.AfterFunc(stay, leave) })

	for ctx.Err() == nil && err == nil {
		err = group.Consume(ctx, []string{topic}, v)
	}

	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("could not join group %s%s within %s", groupPrefix, topic, patience)
	}

	return errors.Join(err, group.Close())
}

// visitor is a member that processes nothing. It is called once it has joined.
type visitor func()

// Setup implements sarama.ConsumerGroupHandler.
func (v visitor) Setup(sarama.ConsumerGroupSession) error {
	v()

	return nil
}

// Cleanup implements sarama.ConsumerGroupHandler.
func (visitor) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim implements sarama.ConsumerGroupHandler.
func (visitor) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case _, open := <-claim.Messages():
			if !open {
				return nil
			}
		case <-session.Context().Done():
			return nil
		}
	}
}

func (k *kafka) close() {
	_ = errors.Join(k.producer.Close(), k.consumer.Close(), k.admin.Close(), k.client.Close()) // the run is over
}
