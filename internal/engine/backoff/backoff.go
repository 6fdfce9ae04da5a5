// Package backoff provides the delays between attempts.
package backoff

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Sleep pauses for d. It returns ctx.Err if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}

	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Jitter returns a random duration between half of d and d, so that replicas
// do not retry at the same moment.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(max(d/2, 0)+1) }

// maxWait caps the delay between attempts in Retry.
const maxWait = 5 * time.Second

// Final makes Retry return err instead of trying again.
func Final(err error) error { return backoff.Permanent(err) }

// remindEvery is how often Retry logs that it still waits.
const remindEvery = 10 * time.Minute

// Retry calls attempt with growing delays until it succeeds, returns a Final error or
// ctx ends. It logs when it starts waiting for the dependency what, from time to time
// while it waits, and when the dependency becomes available.
func Retry(ctx context.Context, logger *slog.Logger, what string, attempt func() error) error {
	var logged time.Time

	policy := backoff.NewExponentialBackOff()
	policy.MaxInterval = maxWait

	_, err := backoff.Retry(ctx,
		func() (struct{}, error) { return struct{}{}, attempt() },
		backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) {
			if time.Since(logged) >= remindEvery {
				logger.Warn("waiting for a dependency", slog.String("dependency", what), slog.Any("error", err))

				logged = time.Now()
			}
		}))
	if err == nil && !logged.IsZero() {
		logger.Info("dependency is available", slog.String("dependency", what))
	}

	return err
}
