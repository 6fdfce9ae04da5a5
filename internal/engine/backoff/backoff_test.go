package backoff_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millracehq/millrace/internal/engine/backoff"
)

func TestSleep(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		if err := backoff.Sleep(t.Context(), time.Minute); err != nil || time.Since(started) != time.Minute {
			t.Errorf("slept %s, %v", time.Since(started), err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		started = time.Now()
		if err := backoff.Sleep(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) || time.Since(started) != time.Second {
			t.Errorf("slept %s, %v", time.Since(started), err)
		}
	})
}

func TestJitter(t *testing.T) {
	t.Parallel()

	for _, d := range []time.Duration{0, 1, 2, time.Second} {
		for range 100 {
			if got := backoff.Jitter(d); got < d/2 || got > d {
				t.Fatalf("Jitter(%s) = %s", d, got)
			}
		}
	}
}
