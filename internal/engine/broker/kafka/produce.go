package kafka

import (
	"math"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/gather"
)

const (
	// maxBatchBytes is Kafka's default for message.max.bytes, which bounds batches.
	maxBatchBytes = 1_048_588
	// maxRequestBytes bounds a request of several batches.
	maxRequestBytes = 8 << 20
	// produceTimeout is how long a broker waits for the replicas of a partition.
	produceTimeout = 10 * time.Second
	// produceVersion is the version of the request that brokers since 2.4 understand. The
	// client library lowers it for older ones.
	produceVersion = 8
)

// run is a sequence of records of one partition. They are written in one batch, so the
// broker writes all of them or none.
type run struct {
	topic     string
	partition int32
	records   []*sarama.Record
	bytes     int
	// alone is true if the run needs a request of its own.
	alone bool
	// done receives the result of a try.
	done chan error
}

// leader is a broker that requests are on their way to, one at a time, so that the
// batches of a partition are written in order.
type leader struct {
	broker  *sarama.Broker
	waiting []*run
}

// add adds a run to the next request to a broker.
func (p *publisher) add(broker *sarama.Broker, r *run) {
	p.mu.Lock()
	defer p.mu.Unlock()

	id := broker.ID()

	l, busy := p.leaders[id]
	if !busy {
		l = &leader{}
		p.leaders[id] = l

		p.writing.Go(func() { p.send(id, l) })
	}

	l.broker, l.waiting = broker, append(l.waiting, r)
}

// withdraw removes a run from the next request. A run that is already on its way may still
// be written.
func (p *publisher) withdraw(broker *sarama.Broker, r *run) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if l, busy := p.leaders[broker.ID()]; busy {
		l.waiting = slices.DeleteFunc(l.waiting, func(other *run) bool { return other == r })
	}
}

// send sends requests to a leader until nothing waits for it.
func (p *publisher) send(id int32, l *leader) {
	for {
		gather.Until(math.MaxInt, func() int { return p.waiting(l) })

		broker, next := p.take(id, l)
		if next == nil {
			return
		}

		next.send(broker)
	}
}

// waiting returns the number of runs that wait for a leader.
func (p *publisher) waiting(l *leader) int {
	p.mu.Lock()
	defer p.mu.Unlock()

	return len(l.waiting)
}

// take takes the next request. If there is none, it forgets the leader.
func (p *publisher) take(id int32, l *leader) (*sarama.Broker, *request) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if len(l.waiting) == 0 {
		delete(p.leaders, id)

		return nil, nil
	}

	next := &request{batches: map[partition]*batch{}}
	l.waiting = slices.DeleteFunc(l.waiting, next.add)

	return l.broker, next
}

// request is a request to a broker: a batch for each partition.
type request struct {
	batches map[partition]*batch
	bytes   int
	// full is true if the request has a run that must be alone.
	full bool
}

type partition struct {
	topic string
	id    int32
}

// batch is the runs to write to a partition.
type batch struct {
	runs  []*run
	bytes int
}

// add adds a run, unless there is no room for it.
func (q *request) add(r *run) bool {
	at := partition{r.topic, r.partition}
	b := q.batches[at]

	switch {
	case q.full, q.bytes > 0 && (r.alone || q.bytes+r.bytes > maxRequestBytes):
		return false
	case b == nil:
		b = &batch{}
		q.batches[at] = b
	case b.bytes+r.bytes > maxBatchBytes:
		return false
	}

	q.full, q.bytes = r.alone, q.bytes+r.bytes
	b.runs, b.bytes = append(b.runs, r), b.bytes+r.bytes

	return true
}

// send sends the request and passes the answers on.
func (q *request) send(broker *sarama.Broker) {
	produce := &sarama.ProduceRequest{RequiredAcks: sarama.WaitForAll, Timeout: int32(produceTimeout / time.Millisecond), Version: produceVersion}
	for at, b := range q.batches {
		produce.AddBatch(at.topic, at.id, b.records())
	}

	answer, err := exchange(broker, produce)

	for at, b := range q.batches {
		b.settle(resultOf(at, answer, err))
	}
}

// exchange sends a request and waits for the answer. sarama's Produce would lock the
// broker meanwhile, and with it every search for a leader.
func exchange(broker *sarama.Broker, produce *sarama.ProduceRequest) (answer *sarama.ProduceResponse, err error) {
	answered := make(chan struct{})

	sent := broker.AsyncProduce(produce, func(response *sarama.ProduceResponse, failure error) {
		answer, err = response, failure

		close(answered)
	})
	if sent != nil {
		err = sent
	} else {
		<-answered
	}

	if err != nil {
		_ = broker.Close() // the next request needs a new connection
	}

	return answer, err
}

// resultOf returns the answer for a partition.
func resultOf(at partition, answer *sarama.ProduceResponse, err error) error {
	if err != nil {
		return err
	}

	switch block := answer.GetBlock(at.topic, at.id); {
	case block == nil:
		return sarama.ErrIncompleteResponse
	case block.Err != sarama.ErrNoError:
		return block.Err
	default:
		return nil
	}
}

func (b *batch) settle(err error) {
	for _, r := range b.runs {
		r.done <- err
	}
}

// records returns the batch in Kafka's format.
func (b *batch) records() *sarama.RecordBatch {
	const none = -1 // not idempotent

	now := time.Now()
	records := &sarama.RecordBatch{Version: 2, FirstTimestamp: now, MaxTimestamp: now, ProducerID: none, ProducerEpoch: none, FirstSequence: none}

	for _, r := range b.runs {
		records.Records = append(records.Records, r.records...)
	}

	for i, record := range records.Records {
		record.OffsetDelta = int64(i)
	}

	records.LastOffsetDelta = int32(len(records.Records) - 1) //nolint:gosec // bounded by maxBatchBytes

	return records
}

// sizeOf returns the maximum size of a record in a batch.
func sizeOf(record *sarama.Record) int {
	const number = 10 // bytes, at most

	size := 6*number + len(record.Key) + len(record.Value)
	for _, header := range record.Headers {
		size += 2*number + len(header.Key) + len(header.Value)
	}

	return size
}
