package consumer

import (
	"errors"
	"fmt"
	"time"
)

// Config tunes the consumers.
type Config struct {
	// MaxBatch is how many messages share a transaction at most.
	MaxBatch int `koanf:"max_batch"`
	// ConcurrentBatches is how many transactions of one consumer run at once.
	// Messages with the same key are never in two of them. One makes larger
	// batches, which take less CPU; more help where the database is far away.
	ConcurrentBatches int `koanf:"concurrent_batches"`
	// HandlerTimeout bounds one attempt to apply a batch or to reach the
	// outside.
	HandlerTimeout time.Duration `koanf:"handler_timeout"`
	// Retries is how often a message whose handler failed is tried again
	// before it goes to the poison queue.
	Retries int `koanf:"retries"`
	// RetryInterval is the pause before the first of these.
	RetryInterval time.Duration `koanf:"retry_interval"`
	// LaterInterval is how long a message waits whose effect may succeed later,
	// before the first time; then twice as long each time, up to 10 minutes.
	LaterInterval time.Duration `koanf:"later_interval"`
	// LaterAttempts is how often it comes again before it goes to the poison
	// queue.
	LaterAttempts int `koanf:"later_attempts"`
	// DrainTimeout bounds how long a stopping service waits for messages in
	// hand. Keep it below the grace period of the container.
	DrainTimeout time.Duration `koanf:"drain_timeout"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		MaxBatch:          256,
		ConcurrentBatches: 1,
		HandlerTimeout:    20 * time.Second,
		Retries:           3,
		RetryInterval:     50 * time.Millisecond,
		LaterInterval:     2 * time.Second,
		LaterAttempts:     50,
		DrainTimeout:      15 * time.Second,
	}
}

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	var errs []error

	check := func(ok bool, key string, got any, expected string) {
		if !ok {
			errs = append(errs, fmt.Errorf("consumer.%s: is %v, expected %s", key, got, expected))
		}
	}

	check(c.MaxBatch >= 1 && c.MaxBatch <= 4096, "max_batch", c.MaxBatch, "1 to 4096")
	check(c.ConcurrentBatches >= 1 && c.ConcurrentBatches <= 64, "concurrent_batches", c.ConcurrentBatches, "1 to 64")
	check(c.HandlerTimeout > 0 && c.HandlerTimeout <= 50*time.Second, "handler_timeout", c.HandlerTimeout,
		"more than 0s and at most 50s, to stay below Kafka's rebalance time-out")
	check(c.Retries >= 0 && c.Retries <= 20, "retries", c.Retries, "0 to 20")
	check(c.RetryInterval > 0, "retry_interval", c.RetryInterval, "more than 0s")
	check(c.LaterInterval > 0, "later_interval", c.LaterInterval, "more than 0s")
	check(c.LaterAttempts >= 0, "later_attempts", c.LaterAttempts, "0 or more")
	check(c.DrainTimeout > 0, "drain_timeout", c.DrainTimeout, "more than 0s")

	return errors.Join(errs...)
}
