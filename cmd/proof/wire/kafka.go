package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"
)

// groupPrefix precedes the topic in the names of the service's consumer groups.
const groupPrefix = "millrace."

// Kafka is a producer, a reader of all topics, and an observer of consumer groups.
type Kafka struct {
	address  string
	cfg      *sarama.Config
	client   sarama.Client
	admin    sarama.ClusterAdmin
	producer sarama.SyncProducer
	consumer sarama.Consumer

	mu   sync.Mutex
	logs map[Place][]Record
	next map[Place]int64
	// marks know up to which offset the broker has records; came is when a record was last
	// read. The end of a transaction is no record, but has an offset.
	marks map[Place]sarama.PartitionConsumer
	came  time.Time
}

// OpenKafka connects to a broker and starts reading all topics.
func OpenKafka(ctx context.Context, address string) (*Kafka, error) {
	cfg := sarama.NewConfig()
	cfg.ClientID, cfg.Version = "proof", sarama.V3_0_0_0
	cfg.Producer.Return.Successes, cfg.Producer.RequiredAcks = true, sarama.WaitForAll
	cfg.Producer.Idempotent, cfg.Net.MaxOpenRequests = true, 1 // a creation is sent exactly twice
	// The broker limits the compressed size, so that oversized messages can be written.
	cfg.Producer.Compression, cfg.Producer.MaxMessageBytes = sarama.CompressionGZIP, 4<<20
	cfg.Consumer.IsolationLevel = sarama.ReadCommitted
	// A connection answers requests one by one, and each fetch waits this long.
	cfg.Consumer.MaxWaitTime = 50 * time.Millisecond

	k := &Kafka{address: address, cfg: cfg, logs: map[Place][]Record{}, next: map[Place]int64{}, marks: map[Place]sarama.PartitionConsumer{}}
	servers := []string{address}

	var errs [4]error

	k.client, errs[0] = sarama.NewClient(servers, cfg)
	k.admin, errs[1] = sarama.NewClusterAdmin(servers, cfg)
	k.producer, errs[2] = sarama.NewSyncProducer(servers, cfg)
	k.consumer, errs[3] = sarama.NewConsumer(servers, cfg)

	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}

	return k, k.readAll(ctx)
}

// readAll starts reading all topics from the beginning.
func (k *Kafka) readAll(ctx context.Context) error {
	topics, err := k.admin.ListTopics()
	if err != nil {
		return err
	}

	for topic, detail := range topics {
		if strings.HasPrefix(topic, "__") {
			continue
		}

		for partition := range detail.NumPartitions {
			var claim sarama.PartitionConsumer

			// A new topic may have no leader yet.
			err := until(ctx, "its leader", func() (ready bool, err error) {
				claim, err = k.consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
				if errors.Is(err, sarama.ErrNotLeaderForPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable) || errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
					return false, nil
				}

				return err == nil, err
			})
			if err != nil {
				return fmt.Errorf("reading topic %s: %w", topic, err)
			}

			go k.read(Place{topic, partition}, claim)
		}
	}

	return nil
}

func (k *Kafka) read(from Place, claim sarama.PartitionConsumer) {
	k.mu.Lock()
	k.marks[from] = claim
	k.mu.Unlock()

	for m := range claim.Messages() {
		r := Record{Place: from, Offset: m.Offset, ID: idOf(m), Causation: causation(m), At: m.Timestamp, Value: m.Value}

		k.mu.Lock()
		k.logs[from] = append(k.logs[from], r)
		k.next[from], k.came = m.Offset+1, time.Now()
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

func causation(m *sarama.ConsumerMessage) uuid.UUID {
	for _, h := range m.Headers {
		if id, err := uuid.ParseBytes(h.Value); err == nil && string(h.Key) == "causation_id" {
			return id
		}
	}

	return uuid.Nil
}

// Records returns the records of a partition with offsets in [from, to), once they have
// been read.
func (k *Kafka) Records(ctx context.Context, p Place, from, to int64) ([]Record, error) {
	err := until(ctx, fmt.Sprintf("reading %s up to offset %d", p, to), func() (bool, error) {
		k.mu.Lock()
		defer k.mu.Unlock()

		return k.next[p] >= to || k.idle() && k.marks[p] != nil && k.marks[p].HighWaterMarkOffset() >= to, nil
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

// idle reports whether the readers have read all records that they know of.
func (k *Kafka) idle() bool { return time.Since(k.came) > time.Second }

func byOffset(r Record, offset int64) int { return cmp.Compare(r.Offset, offset) }

// Ends returns the offset after the last record of each partition of a topic.
func (k *Kafka) Ends(topic string) (map[Place]int64, error) {
	partitions, err := k.client.Partitions(topic)
	if err != nil {
		return nil, err
	}

	ends := map[Place]int64{}

	for _, partition := range partitions {
		if ends[Place{topic, partition}], err = k.client.GetOffset(topic, partition, sarama.OffsetNewest); err != nil {
			return nil, err
		}
	}

	return ends, nil
}

// Published returns what is on a topic, in order within partitions.
func (k *Kafka) Published(ctx context.Context, topic string) ([]Record, error) {
	ends, err := k.Ends(topic)
	if err != nil {
		return nil, err
	}

	var all []Record

	for p, end := range ends {
		list, err := k.Records(ctx, p, 0, end)
		if err != nil {
			return nil, err
		}

		all = append(all, list...)
	}

	return all, nil
}

// Committed returns the offsets that the service's groups have committed.
func (k *Kafka) Committed() (map[Place]int64, error) {
	offsets := map[Place]int64{}

	for topic := range Consumers {
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

			offsets[Place{topic, partition}] = max(block.Offset, 0) // -1: nothing is committed
		}
	}

	return offsets, nil
}

// Unknown returns the service's groups for which the checker knows no consumer.
func (k *Kafka) Unknown() ([]string, error) {
	groups, err := k.admin.ListConsumerGroups()
	if err != nil {
		return nil, err
	}

	var list []string

	for group := range groups {
		topic, ours := strings.CutPrefix(group, groupPrefix)
		if _, known := Consumers[topic]; ours && !known {
			list = append(list, group)
		}
	}

	return list, nil
}

// Backlog returns the number of uncommitted records on consumed topics.
func (k *Kafka) Backlog(context.Context) (int, error) {
	committed, err := k.Committed()
	if err != nil {
		return 0, err
	}

	k.mu.Lock()
	defer k.mu.Unlock()

	behind := 0

	for p, offset := range committed {
		first, _ := slices.BinarySearchFunc(k.logs[p], offset, byOffset)
		behind += len(k.logs[p]) - first

		if m := k.marks[p]; m == nil || m.HighWaterMarkOffset() > k.next[p] && !k.idle() {
			behind++ // not read yet
		}
	}

	return behind, nil
}

// Reset implements Broker.
func (k *Kafka) Reset() error {
	producer, err := sarama.NewSyncProducer([]string{k.address}, k.cfg)
	if err != nil {
		return err
	}

	_ = k.producer.Close() // it has failed

	k.producer = producer

	return nil
}

// Hurry makes Publish give up after limit instead of half a minute, for proofs in which the
// broker is often frozen or gone.
func (k *Kafka) Hurry(limit time.Duration) error {
	cfg := *k.cfg
	cfg.Net.DialTimeout, cfg.Net.ReadTimeout, cfg.Net.WriteTimeout = limit, limit, limit
	cfg.Metadata.Timeout, cfg.Producer.Timeout, cfg.Producer.Retry.Max = limit, limit, 1
	k.cfg = &cfg

	return k.Reset()
}

// Abort writes messages in a transaction, and aborts it.
func (k *Kafka) Abort(id string, list []Message) error {
	cfg := *k.cfg
	cfg.Producer.Transaction.ID, cfg.Producer.Transaction.Timeout = id, 5*time.Second

	producer, err := sarama.NewSyncProducer([]string{k.address}, &cfg)
	if err != nil {
		return err
	}
	defer func() { _ = producer.Close() }()

	if err := producer.BeginTxn(); err != nil {
		return err
	}

	if err := producer.SendMessages(recordsOf(list)); err != nil {
		return err
	}

	return producer.AbortTxn()
}

// Publish implements Broker.
func (k *Kafka) Publish(_ context.Context, list []Message) error {
	return k.producer.SendMessages(recordsOf(list))
}

func recordsOf(list []Message) []*sarama.ProducerMessage {
	records := make([]*sarama.ProducerMessage, len(list))

	for i, o := range list {
		records[i] = &sarama.ProducerMessage{Topic: o.Topic, Value: sarama.ByteEncoder(o.Payload)}

		if !o.Keyless {
			records[i].Key = sarama.StringEncoder(o.Key)
		}

		records[i].Headers = []sarama.RecordHeader{{Key: []byte(NumberHeader), Value: []byte(strconv.Itoa(o.Number))}}

		if o.ID != uuid.Nil {
			records[i].Headers = append(records[i].Headers, sarama.RecordHeader{Key: []byte("_watermill_message_uuid"), Value: []byte(o.ID.String())})
		}
	}

	return records
}

// Rebalance makes a member from another program join some groups and leave them again.
// This member takes partitions from the service, and commits nothing.
func (k *Kafka) Rebalance(ctx context.Context, random *rand.Rand) (string, error) {
	topics := []string{"orders.created", "payments.requested", "orders.completed", "user.created", "user.updated", "notifications"}
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
func (k *Kafka) visit(ctx context.Context, topic string, stay time.Duration) error {
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

// Close implements Broker.
func (k *Kafka) Close() {
	_ = errors.Join(k.producer.Close(), k.consumer.Close(), k.admin.Close(), k.client.Close()) // the run is over
}
