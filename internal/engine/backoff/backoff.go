// Package backoff has the pauses between attempts.
package backoff

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Sleep waits for d. It returns the error of ctx if that ends first.
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

// maxWait bounds the pauses of Retry.
const maxWait = 5 * time.Second

// Retry calls attempt until it succeeds or ctx ends, with growing pauses. It
// logs when it has to wait for what, and when the wait is over.
func Retry(ctx context.Context, logger *slog.Logger, what string, attempt func() error) error {
	waited := false
	policy := backoff.NewExponentialBackOff()
	policy.MaxInterval = maxWait

	_, err := backoff.Retry(ctx,
		func() (struct{}, error) { return struct{}{}, attempt() },
		backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) {
			if !waited {
				logger.Warn("waiting for a dependency", slog.String("dependency", what), slog.Any("error", err))
			}

			waited = true
		}))
	if err == nil && waited {
		logger.Info("the dependency answers", slog.String("dependency", what))
	}

	return err
}
