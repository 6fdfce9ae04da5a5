package backoff_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

func TestAnErrorThatLastsIsRepeatedAtGrowingIntervals(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		var (
			reminder backoff.Reminder
			said     []time.Duration
			started  = time.Now()
		)

		for time.Since(started) < 20*time.Minute {
			if reminder.Due(fmt.Errorf("dial from port %d: refused", time.Since(started))) {
				said = append(said, time.Since(started))
			}

			time.Sleep(time.Second)
		}

		want := []time.Duration{0, 30 * time.Second, 90 * time.Second, 210 * time.Second, 450 * time.Second, 930 * time.Second}
		if !slices.Equal(said, want) {
			t.Errorf("logged after %v, expected %v", said, want)
		}

		if !reminder.Due(errors.New("wrong password")) || reminder.Due(errors.New("wrong password")) {
			t.Error("another error is logged once, immediately")
		}

		if !reminder.Reset() || reminder.Reset() {
			t.Error("Reset reports an error once")
		}
	})
}
