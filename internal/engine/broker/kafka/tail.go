package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/internal/engine/backoff"
)

// Tail implements driver.Tailer. It reads all partitions without a consumer group.
func (d *Driver) Tail(ctx context.Context, topic string, fn func(*message.Message) error) (err error) {
	cfg, err := d.settings(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}

	cfg.Consumer.Return.Errors = false // sarama logs them and retries

	client, err := d.open(cfg)
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, client.Close()) }()

	consumer, err := sarama.NewConsumerFromClient(client)
	if err != nil {
		return fmt.Errorf("reading from kafka: %w", err)
	}

	defer func() { err = errors.Join(err, consumer.Close()) }()

	partitions, err := consumer.Partitions(d.cfg.Prefix + topic)
	if err != nil {
		return fmt.Errorf("reading the partitions of topic %s: %w", topic, err)
	}

	var mu sync.Mutex // fn gets one message at a time

	readers, ctx := errgroup.WithContext(ctx)

	for _, number := range partitions {
		partition, err := readNew(ctx, consumer, d.cfg.Prefix+topic, number)
		if err != nil {
			return fmt.Errorf("reading partition %d of topic %s: %w", number, topic, err)
		}

		readers.Go(func() error {
			defer partition.AsyncClose()

			return read(ctx, partition.Messages(), func(msg *message.Message) error {
				mu.Lock()
				defer mu.Unlock()

				return fn(msg)
			})
		})
	}

	return readers.Wait()
}

// readNew reads a partition from now on. It waits a while for the leader of a partition
// that is new or moving.
func readNew(ctx context.Context, consumer sarama.Consumer, topic string, number int32) (sarama.PartitionConsumer, error) {
	for attempt := 1; ; attempt++ {
		partition, err := consumer.ConsumePartition(topic, number, sarama.OffsetNewest)
		leaderless := errors.Is(err, sarama.ErrNotLeaderForPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable)

		if !leaderless || attempt == leaderAttempts {
			return partition, err
		}

		if err := backoff.Sleep(ctx, leaderWait); err != nil {
			return nil, err
		}
	}
}

// Attempts to find a leader, and the wait between them: 10 s in total.
const (
	leaderAttempts = 20
	leaderWait     = 500 * time.Millisecond
)

// read calls fn with each record until ctx ends.
func read(ctx context.Context, records <-chan *sarama.ConsumerMessage, fn func(*message.Message) error) error {
	for {
		select {
		case record, open := <-records:
			if !open {
				return nil
			}

			if err := fn(Unmarshal(record)); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}
