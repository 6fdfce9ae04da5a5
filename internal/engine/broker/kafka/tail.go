package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"
)

// Tail implements driver.Tailer. It reads every partition without a group.
func (d *Driver) Tail(ctx context.Context, topic string, fn func(*message.Message) error) (err error) {
	cfg, err := d.sarama()
	if err != nil {
		return err
	}

	cfg.Consumer.Return.Errors = false // sarama logs them and retries

	consumer, err := sarama.NewConsumer(d.cfg.Brokers, cfg)
	if err != nil {
		return fmt.Errorf("reaching kafka at %v: %w", d.cfg.Brokers, err)
	}

	defer func() { err = errors.Join(err, consumer.Close()) }()

	partitions, err := consumer.Partitions(d.cfg.Prefix + topic)
	if err != nil {
		return fmt.Errorf("reading the partitions of topic %s: %w", topic, err)
	}

	records := make(chan *sarama.ConsumerMessage)
	readers, ctx := errgroup.WithContext(ctx)

	for _, number := range partitions {
		partition, err := consumer.ConsumePartition(d.cfg.Prefix+topic, number, sarama.OffsetNewest)
		if err != nil {
			return fmt.Errorf("reading partition %d of topic %s: %w", number, topic, err)
		}

		readers.Go(func() error {
			defer partition.AsyncClose()

			for {
				select {
				case record := <-partition.Messages():
					select {
					case records <- record:
					case <-ctx.Done():
						return nil
					}
				case <-ctx.Done():
					return nil
				}
			}
		})
	}

	readers.Go(func() error {
		for {
			select {
			case record := <-records:
				msg, err := (Marshaler{}).Unmarshal(record)
				if err == nil {
					err = fn(msg)
				}

				if err != nil {
					return err
				}
			case <-ctx.Done():
				return nil
			}
		}
	})

	return readers.Wait()
}
