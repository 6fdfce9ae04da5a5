package kafka

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/eapache/go-resiliency/breaker"
	"golang.org/x/sync/singleflight"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

const (
	// maxBatchBytes is Kafka's default for message.max.bytes, which bounds batches.
	maxBatchBytes = 1_048_588
	// maxMessageBytes (16 MiB) allows for topics with a higher limit.
	maxMessageBytes = 16 << 20
	// publishTimeout is how long a publish waits for the broker.
	publishTimeout = 30 * time.Second
)

var errPublishTimeout = fmt.Errorf("the broker did not confirm the message within %s", publishTimeout)

var errNotAsked = errors.New("the client has not read the topic's metadata yet")

// publisher sends messages in batches. If the broker does not accept a message in a
// batch, publisher sends it alone, so that the answer is about that message only. Callers
// publish messages with the same key one at a time, so they stay in order.
type publisher struct {
	batched, alone message.Publisher
	client         sarama.Client
	prefix         string
	asking         singleflight.Group
	// closing keeps Close apart from Publish, which share a flag in Watermill's publisher.
	closing sync.RWMutex
}

func newPublisher(cfg Config, settings *sarama.Config, client sarama.Client, logger *slog.Logger) (*publisher, error) {
	p := &publisher{client: client, prefix: cfg.Prefix}

	batched, alone := *settings, *settings
	batched.Producer.MaxMessageBytes = maxBatchBytes
	alone.Producer.MaxMessageBytes, alone.Producer.Flush.MaxMessages = maxMessageBytes, 1

	for _, producer := range []struct {
		settings *sarama.Config
		target   *message.Publisher
	}{{&batched, &p.batched}, {&alone, &p.alone}} {
		watermill, err := kafka.NewPublisher(kafka.PublisherConfig{
			Brokers: cfg.Brokers, Marshaler: Marshaler{prefix: cfg.Prefix}, OverwriteSaramaConfig: producer.settings,
		}, driver.WatermillLogger(logger))
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}

		*producer.target = watermill
	}

	return p, nil
}

// Publish implements message.Publisher. If the broker refuses a message, the error is a
// driver.RefusedError.
func (p *publisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		err := p.bounded(func() error { return p.batched.Publish(topic, msg) })

		refused := p.sort(topic, err)
		if refused != nil && refused.Scope == driver.OneMessage {
			err = p.bounded(func() error { return p.alone.Publish(topic, msg) })
			refused = p.sort(topic, err)
		}

		switch {
		case refused != nil:
			return refused
		case err != nil:
			return fmt.Errorf("publishing to topic %s: %w", topic, err)
		}
	}

	return nil
}

// bounded waits at most publishTimeout for publish. After that, the client library still
// holds the message, so it may be published twice.
func (p *publisher) bounded(publish func() error) error {
	result := make(chan error, 1)

	go func() {
		p.closing.RLock()
		defer p.closing.RUnlock()

		result <- publish()
	}()

	timer := time.NewTimer(publishTimeout)
	defer timer.Stop()

	select {
	case err := <-result:
		return err
	case <-timer.C:
		return errPublishTimeout
	}
}

// sort returns the refusal in a publishing error, or nil if there is none.
func (p *publisher) sort(topic string, err error) *driver.RefusedError {
	if errors.Is(err, breaker.ErrBreakerOpen) {
		// sarama could not read the topic's metadata, does not try again for a few
		// seconds, and hides why.
		_, asked, _ := p.asking.Do(topic, func() (any, error) { return nil, p.client.RefreshMetadata(p.prefix + topic) })
		if asked == nil {
			return &driver.RefusedError{Scope: driver.OneTopic, Topic: topic, Remedy: "wait a few seconds", Err: errNotAsked}
		}

		err = asked
	}

	return refusalOf(topic, err)
}

// Close implements message.Publisher. It waits until the client library has answered for
// all messages, which it does at once when the connections end.
func (p *publisher) Close() error {
	p.closing.Lock()
	defer p.closing.Unlock()

	var errs []error

	for _, producer := range []message.Publisher{p.batched, p.alone} {
		if producer != nil {
			errs = append(errs, producer.Close())
		}
	}

	return errors.Join(errs...)
}
