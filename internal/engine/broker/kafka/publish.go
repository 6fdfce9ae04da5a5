package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

const (
	// maxMessageBytes (16 MiB) allows for topics with a higher limit than Kafka's default.
	maxMessageBytes = 16 << 20
	// publishTimeout is how long a publish waits for the broker.
	publishTimeout = 30 * time.Second
	// maxTries is the number of tries before a publish reports an error that may be
	// temporary, such as a partition without a leader. tryWait is the time between tries.
	maxTries = 6
	tryWait  = 100 * time.Millisecond
)

var (
	errPublishTimeout = fmt.Errorf("the broker did not confirm the message within %s", publishTimeout)
	errTooLarge       = fmt.Errorf("the message is larger than %d MiB", maxMessageBytes>>20)
)

// publisher writes messages in batches: those that are published while a request to a
// broker is on its way form the next request. Nothing is written behind a message that
// could not be written. The client library's own producers cannot promise that: after
// they have given up a message, they go on with those behind it.
//
// If the broker does not accept a message in a batch, publisher sends it alone, so that
// the answer is about that message only.
type publisher struct {
	client sarama.Client
	prefix string
	// open ends when the connections are closed.
	open context.Context //nolint:containedctx // it is a lifetime, not a request
	// writing counts the publishes and the requests that have not ended.
	writing sync.WaitGroup

	mu     sync.Mutex
	closed bool
	// leaders holds the brokers that requests are on their way to, by id.
	leaders map[int32]*leader
}

// newPublisher returns a publisher that uses client until open ends, and that closes it.
func newPublisher(open context.Context, cfg Config, client sarama.Client) *publisher {
	return &publisher{client: client, prefix: cfg.Prefix, open: open, leaders: map[int32]*leader{}}
}

// begin counts a publish, unless the publisher is closed.
func (p *publisher) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	if !p.closed {
		p.writing.Add(1)
	}

	return !p.closed
}

// Publish implements message.Publisher. It writes messages in order, those with the same
// key in one batch if they fit. If the broker refuses a message, the error is a
// driver.RefusedError.
func (p *publisher) Publish(topic string, messages ...*message.Message) error {
	if !p.begin() {
		return driver.ErrClosed
	}
	defer p.writing.Done()

	ctx, cancel := context.WithTimeoutCause(p.open, publishTimeout, errPublishTimeout)
	defer cancel()

	for len(messages) > 0 {
		next, err := p.next(topic, messages)
		if err == nil {
			err = p.write(ctx, next)
		}

		switch refused := refusalOf(topic, err); {
		case refused != nil:
			return refused
		case err != nil && p.open.Err() != nil:
			return driver.ErrClosed
		case err != nil:
			return fmt.Errorf("publishing to topic %s: %w", topic, err)
		}

		messages = messages[len(next.records):]
	}

	return nil
}

// next builds a run from the first messages: as many as belong to one partition and fit
// into a batch.
func (p *publisher) next(topic string, messages []*message.Message) (*run, error) {
	r := &run{topic: p.prefix + topic}

	partitions, err := p.client.Partitions(r.topic)
	if err == nil && len(partitions) == 0 {
		err = sarama.ErrLeaderNotAvailable
	}

	if err != nil {
		return nil, err
	}

	for i, msg := range messages {
		record := Marshal(msg)
		partition, size := partitionOf(record.Key, len(partitions)), sizeOf(record)

		switch {
		case i == 0 && size > maxMessageBytes:
			return nil, &driver.RefusedError{Scope: driver.OneMessage, Topic: topic, Remedy: "discard the message", Err: errTooLarge}
		case i > 0 && (partition != r.partition || r.bytes+size > maxBatchBytes):
			return r, nil
		}

		r.partition, r.records, r.bytes = partition, append(r.records, record), r.bytes+size
	}

	return r, nil
}

// write writes a run, and tries again after an error that may be temporary.
func (p *publisher) write(ctx context.Context, r *run) error {
	for tries := 1; ; tries++ {
		err := p.try(ctx, r)

		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && !r.alone: // the answer may be about another run of the batch
			return context.Cause(ctx)
		}

		switch refused := refusalOf(r.topic, err); {
		case refused == nil || refused.Scope == driver.OnePartition || errors.Is(err, sarama.ErrUnknownTopicOrPartition):
			if tries == maxTries || backoff.Sleep(ctx, tryWait) != nil {
				return err
			}

			if _, asked := errors.AsType[leaderless](err); !asked {
				_ = p.client.RefreshMetadata(r.topic) // the next try reports an error
			}
		case refused.Scope == driver.OneMessage && !r.alone:
			r.alone = true
		default:
			return err
		}
	}
}

// leaderless is an error of finding the leader of a partition, for which the client has
// already refreshed what it knows.
type leaderless struct{ error }

func (l leaderless) Unwrap() error { return l.error }

// try sends a run to the leader of its partition and waits for the answer.
func (p *publisher) try(ctx context.Context, r *run) error {
	broker, err := p.client.Leader(r.topic, r.partition)
	if err != nil {
		return leaderless{err}
	}

	r.done = make(chan error, 1)
	p.add(broker, r)

	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		p.withdraw(broker, r)

		return context.Cause(ctx)
	}
}

// Close implements message.Publisher. It waits until the broker has answered for all
// messages, or until the connections are closed.
func (p *publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()

	p.writing.Wait()

	return p.client.Close()
}
