package consumer

import (
	"errors"
	"fmt"
	"time"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Config configures the consumers.
type Config struct {
	// MaxBatch is the maximum number of messages per transaction. Defaults to 256.
	MaxBatch int `koanf:"max_batch"`
	// ConcurrentBatches is the number of transactions that a consumer may run concurrently.
	// Another one begins only while a full batch waits. Messages with the same key are never
	// in two of them. Defaults to 2.
	ConcurrentBatches int `koanf:"concurrent_batches"`
	// HandlerTimeout bounds one attempt to apply a batch or to perform an
	// effect. Defaults to 20s.
	HandlerTimeout time.Duration `koanf:"handler_timeout"`
	// Retries is the number of immediate retries of a failed message. Defaults to 3.
	Retries int `koanf:"retries"`
	// RetryInterval is the delay before the first immediate retry. Defaults to 50ms.
	RetryInterval time.Duration `koanf:"retry_interval"`
	// ParkInterval is how long a message that still fails is parked, blocking later
	// messages with its key. It doubles with each attempt. Defaults to 2s.
	ParkInterval time.Duration `koanf:"park_interval"`
	// ParkMaxInterval caps ParkInterval. Defaults to 10m.
	ParkMaxInterval time.Duration `koanf:"park_max_interval"`
	// ParkAttempts is the number of times that a waiting message is retried before it is
	// stopped. At 0 it is stopped without waiting. Defaults to 20.
	ParkAttempts int `koanf:"park_attempts"`
	// AwaitTimeout is how long a message waits for another one that it depends on, such
	// as the creation of its user on another topic. It excludes time during which consumers
	// of the other message are paused, unavailable or starting, or the other message is
	// among the failed messages or in the outbox. 0 disables waiting. Defaults to 1m.
	AwaitTimeout time.Duration `koanf:"await_timeout"`
	// PerTopic sets Retries, RetryInterval, ParkInterval, ParkMaxInterval and ParkAttempts
	// for individual topics, overriding the values above and a topic's own defaults. Empty
	// by default.
	PerTopic []TopicConfig `koanf:"per_topic"`
	// DrainTimeout bounds how long a stopping service waits for messages in flight.
	// Keep it below the container's grace period. Defaults to 15s.
	DrainTimeout time.Duration `koanf:"drain_timeout"`
}

// TopicConfig overrides settings of Config for one topic. Nil fields are not
// overridden.
type TopicConfig struct {
	Topic           string         `koanf:"topic"`
	Retries         *int           `koanf:"retries,omitempty"`
	RetryInterval   *time.Duration `koanf:"retry_interval,omitempty"`
	ParkInterval    *time.Duration `koanf:"park_interval,omitempty"`
	ParkMaxInterval *time.Duration `koanf:"park_max_interval,omitempty"`
	ParkAttempts    *int           `koanf:"park_attempts,omitempty"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		MaxBatch:          256,
		ConcurrentBatches: 2,
		HandlerTimeout:    20 * time.Second,
		Retries:           3,
		RetryInterval:     50 * time.Millisecond,
		ParkInterval:      2 * time.Second,
		ParkMaxInterval:   10 * time.Minute,
		ParkAttempts:      20,
		AwaitTimeout:      time.Minute,
		PerTopic:          []TopicConfig{},
		DrainTimeout:      15 * time.Second,
	}
}

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	_, err := c.perTopic()

	return errors.Join(
		check.Value(c.MaxBatch >= 1 && c.MaxBatch <= 4096, "consumer.max_batch", c.MaxBatch, "1 to 4096"),
		check.Value(c.ConcurrentBatches >= 1 && c.ConcurrentBatches <= 64, "consumer.concurrent_batches", c.ConcurrentBatches, "1 to 64"),
		check.Value(c.HandlerTimeout > 0 && c.HandlerTimeout <= 50*time.Second, "consumer.handler_timeout", c.HandlerTimeout,
			"more than 0s and at most 50s, to stay below Kafka's rebalance timeout"),
		check.Value(c.AwaitTimeout >= 0, "consumer.await_timeout", c.AwaitTimeout, "more than 0s, or 0 to disable waiting"),
		check.Value(c.DrainTimeout > 0, "consumer.drain_timeout", c.DrainTimeout, "more than 0s"),
		c.validateRetries("consumer."),
		err,
	)
}

func (c Config) validateRetries(prefix string) error {
	return errors.Join(
		check.Value(c.Retries >= 0 && c.Retries <= 20, prefix+"retries", c.Retries, "0 to 20"),
		check.Value(c.RetryInterval > 0 && c.RetryInterval <= maxRetryInterval, prefix+"retry_interval", c.RetryInterval,
			"more than 0s and at most 2s, because it delays later messages with the same key"),
		check.Value(c.ParkInterval > 0, prefix+"park_interval", c.ParkInterval, "more than 0s"),
		check.Value(c.ParkMaxInterval >= c.ParkInterval, prefix+"park_max_interval", c.ParkMaxInterval, "at least park_interval"),
		check.Value(c.ParkAttempts >= 0, prefix+"park_attempts", c.ParkAttempts, "0 or more"),
	)
}

// wait returns how long a message waits after the given number of failed attempts.
// The result has jitter and is at least the delay that the error asks for, if any.
func (c Config) wait(attempts int, later *event.LaterError) time.Duration {
	grown := c.ParkInterval << min(max(attempts-1, 0), 30)
	if grown <= 0 || grown > c.ParkMaxInterval {
		grown = c.ParkMaxInterval
	}

	wait := backoff.Jitter(grown)
	if later != nil {
		wait = max(wait, later.After)
	}

	return wait
}

// minAwait is the first wait of a message that awaits another one. It matters only if the
// other one is applied while this one is being parked. If the other one is applied later,
// this one's key is woken.
const minAwait = 500 * time.Millisecond

// await returns how long a message waits before it looks again for the one it awaits.
// waited is how long it has already waited, or negative if its wait has not started yet.
func (c Config) await(waited time.Duration) time.Duration {
	if waited < 0 {
		return c.AwaitTimeout
	}

	wait := min(max(minAwait, 3*waited), c.AwaitTimeout)

	if left := c.AwaitTimeout - waited; left > 0 {
		wait = min(wait, left)
	}

	return max(wait, 10*time.Millisecond)
}

// perTopic returns the settings of the topics in Config.PerTopic.
func (c Config) perTopic() (map[string]Config, error) {
	var errs []error

	topics := make(map[string]Config, len(c.PerTopic))

	for _, t := range c.PerTopic {
		if _, twice := topics[t.Topic]; twice || t.Topic == "" {
			errs = append(errs, fmt.Errorf("consumer.per_topic: topic is %q, expected each topic once", t.Topic))
		}

		own := c.with(t)
		errs = append(errs, own.validateRetries("consumer.per_topic: "+t.Topic+": "))
		topics[t.Topic] = own
	}

	return topics, errors.Join(errs...)
}

// with returns c with the settings of t.
func (c Config) with(t TopicConfig) Config {
	override(&c.Retries, t.Retries)
	override(&c.RetryInterval, t.RetryInterval)
	override(&c.ParkInterval, t.ParkInterval)
	override(&c.ParkMaxInterval, t.ParkMaxInterval)
	override(&c.ParkAttempts, t.ParkAttempts)

	return c
}

func override[T any](value, by *T) {
	if by != nil {
		*value = *by
	}
}
