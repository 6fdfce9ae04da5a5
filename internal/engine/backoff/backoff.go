// Package backoff provides the delays between attempts.
package backoff

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
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

// Retry calls attempt with increasing delays until it succeeds, returns a Final error or
// ctx ends. It logs when it starts waiting for the dependency named what, at increasing
// intervals while it waits, and when the dependency becomes available.
func Retry(ctx context.Context, logger *slog.Logger, what string, attempt func() error) error {
	var reminder Reminder

	err := until(ctx, attempt, func(err error) {
		if reminder.Due(err) {
			logger.Warn("waiting for a dependency", slog.String("dependency", what), slog.Any("error", err))
		}
	})
	if err == nil && reminder.Reset() {
		logger.Info("dependency is available", slog.String("dependency", what))
	}

	return err
}

// Until is Retry without logging.
func Until(ctx context.Context, attempt func() error) error {
	return until(ctx, attempt, func(error) {})
}

func until(ctx context.Context, attempt func() error, failed func(error)) error {
	policy := backoff.NewExponentialBackOff()
	policy.MaxInterval = maxWait

	_, err := backoff.Retry(ctx,
		func() (struct{}, error) { return struct{}{}, attempt() },
		backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) { failed(err) }))

	return err
}

// The delay before an error is logged again grows from firstReminder to lastReminder.
const (
	firstReminder = 30 * time.Second
	lastReminder  = 10 * time.Minute
)

// Reminder decides when to log a persistent error: immediately, when its text changes,
// and at increasing intervals.
type Reminder struct {
	mu    sync.Mutex
	text  string
	pause time.Duration
	next  time.Time
}

// Due reports whether to log err now.
func (r *Reminder) Due(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	now := time.Now()

	if text := withoutDigits(err.Error()); text != r.text {
		r.text, r.pause, r.next = text, firstReminder, now.Add(firstReminder)

		return true
	}

	if now.Before(r.next) {
		return false
	}

	r.pause = min(2*r.pause, lastReminder)
	r.next = now.Add(r.pause)

	return true
}

// withoutDigits removes digits, because ports differ between attempts.
func withoutDigits(text string) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return -1
		}

		return c
	}, text)
}

// Reset forgets the error. It reports whether there was one.
func (r *Reminder) Reset() bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	was := r.text != ""
	r.text = ""

	return was
}
