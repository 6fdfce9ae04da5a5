package breaker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/breaker"
)

var errRefused = errors.New("connection refused")

func set(log *bytes.Buffer) *breaker.Set {
	return breaker.NewSet(slog.New(slog.NewTextHandler(log, nil)), prometheus.NewRegistry())
}

// attempt waits for permission, then fails with err or succeeds.
func attempt(t *testing.T, b *breaker.Breaker, err error) {
	t.Helper()

	a, waitErr := b.Wait(t.Context())
	if waitErr != nil {
		t.Fatal(waitErr)
	}

	if err != nil {
		a.Failed(err)
	} else {
		a.Answered()
	}
}

func TestOneAttemptAtATimeProbesAnUnavailableDependency(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer

		b := set(&log).Get("gateway")
		for range 3 {
			attempt(t, b, errRefused)
		}

		if s := b.State(); s.Up || s.Why != errRefused.Error() || s.Since == nil {
			t.Fatalf("got %+v", s)
		}

		attempts := make(chan *breaker.Attempt, 10)

		for range 10 {
			go func() {
				if a, err := b.Wait(t.Context()); err == nil {
					attempts <- a
				}
			}()
		}

		time.Sleep(time.Minute)
		synctest.Wait()

		if len(attempts) != 1 {
			t.Fatalf("%d attempts started concurrently, expected 1", len(attempts))
		}

		(<-attempts).Answered()
		synctest.Wait()

		if len(attempts) != 9 || !b.State().Up {
			t.Errorf("%d waiters continued, expected 9; %+v", len(attempts), b.State())
		}

		if lines := strings.Count(log.String(), "\n"); lines != 2 {
			t.Errorf("expected one line for the outage and one for the recovery:\n%s", log.String())
		}
	})
}

func TestDelaysGrowUpToFiveSeconds(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		b := set(&bytes.Buffer{}).Get("gateway")

		var last time.Duration

		for range 20 {
			a, err := b.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}

			if last = a.Failed(errRefused); last > 5*time.Second {
				t.Fatalf("got a delay of %s", last)
			}
		}

		if last < 2500*time.Millisecond {
			t.Errorf("after 20 failures the delay is %s, expected 2.5s to 5s", last)
		}
	})
}

func TestASuccessBetweenFailuresKeepsTheBreakerClosed(t *testing.T) {
	t.Parallel()

	b := set(&bytes.Buffer{}).Get("gateway")

	for range 10 {
		attempt(t, b, errRefused)
		attempt(t, b, errRefused)
		attempt(t, b, nil)
	}

	if !b.State().Up {
		t.Errorf("got %+v", b.State())
	}
}

func TestAnAbandonedAttemptLetsAnotherStart(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		b := set(&bytes.Buffer{}).Get("gateway")
		for range 3 {
			attempt(t, b, errRefused)
		}

		probe, err := b.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()

		if _, err := b.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a second attempt did not start: %v", err)
		}

		probe.Abandoned()
		attempt(t, b, nil)
	})
}

func TestALateAnswerDoesNotCloseAnOpenBreaker(t *testing.T) {
	t.Parallel()

	b := set(&bytes.Buffer{}).Get("mail server")

	early, err := b.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	for range 3 {
		b.Failed(errRefused)
	}

	early.Answered()

	if b.State().Up {
		t.Error("an attempt from before the outage ended it")
	}
}

// look makes a successful attempt that only reads.
func look(t *testing.T, b *breaker.Breaker) {
	t.Helper()

	a, err := b.WaitToRead(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	a.Answered()
}

func TestOnlyAWriteEndsAnOutageOfWrites(t *testing.T) {
	t.Parallel()

	b := set(&bytes.Buffer{}).Get("postgres")
	for range 3 {
		attempt(t, b, errRefused)
		look(t, b)
	}

	if look(t, b); b.State().Up {
		t.Error("a read ended it")
	}

	if attempt(t, b, nil); !b.State().Up {
		t.Error("a write did not end it")
	}
}

func TestAReadEndsAnOutageThatOnlyReadsHaveFound(t *testing.T) {
	t.Parallel()

	b := set(&bytes.Buffer{}).Get("postgres")

	for range 3 {
		a, err := b.WaitToRead(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		a.Failed(errRefused)
	}

	if look(t, b); !b.State().Up {
		t.Errorf("got %+v", b.State())
	}
}

// TestWritesOfOthersCloseABreakerThatSomeKeepOpening shows a known limit: if only some
// writes fail, the breaker opens and closes by turns.
func TestWritesOfOthersCloseABreakerThatSomeKeepOpening(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer

		b := set(&log).Get("postgres")

		for turn := range 3 {
			for range 3 {
				attempt(t, b, errRefused)
			}

			if b.State().Up {
				t.Fatalf("turn %d: it is closed after three failures", turn)
			}

			attempt(t, b, nil)

			if !b.State().Up {
				t.Fatalf("turn %d: it is open after a write", turn)
			}
		}
	})
}
