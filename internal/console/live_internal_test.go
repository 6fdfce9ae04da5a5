package console

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// polled returns a page that counts how often it is polled, and changes each time.
func polled(n *atomic.Int64) func() ([]byte, error) {
	return func() ([]byte, error) { return fmt.Append(nil, n.Add(1)), nil }
}

func TestThereIsOnePollASecondHoweverManyLook(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		h := newHub(slog.New(slog.DiscardHandler))
		defer h.close()

		var a, b atomic.Int64

		for range 20 {
			_, _, leave := h.watch("a", polled(&a))
			defer leave()
		}

		_, _, leave := h.watch("b", polled(&b))
		defer leave()

		time.Sleep(10*time.Second + pollEvery/2)

		if n := a.Load() + b.Load(); n != 11 || a.Load() < 5 || b.Load() < 5 {
			t.Errorf("polled %d and %d times in 10 s, expected 11 polls, by turns", a.Load(), b.Load())
		}
	})
}

func TestNothingIsPolledWhileNobodyLooks(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		h := newHub(slog.New(slog.DiscardHandler))
		defer h.close()

		var n atomic.Int64

		_, changed, leave := h.watch("a", polled(&n))
		<-changed
		leave()

		before := n.Load()

		time.Sleep(time.Minute)

		if after := n.Load(); after != before {
			t.Errorf("polled %d times after everybody left", after-before)
		}

		_, changed, leave = h.watch("a", polled(&n))
		<-changed
		leave()
	})
}

func TestAWatcherHearsOfChangesOnly(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		h := newHub(slog.New(slog.DiscardHandler))
		defer h.close()

		var failing atomic.Bool

		v, changed, leave := h.watch("a", func() ([]byte, error) {
			if failing.Load() {
				return nil, fmt.Errorf("no database")
			}

			return []byte("same"), nil
		})
		defer leave()

		<-changed
		time.Sleep(time.Minute)

		select {
		case <-changed:
			t.Error("a change is reported although the page is the same")
		default:
		}

		failing.Store(true)
		<-changed

		if html, trouble := h.read(v); string(html) != "same" || trouble == "" {
			t.Errorf("after a failure: %q, %q", html, trouble)
		}

		failing.Store(false)
		<-changed

		if _, trouble := h.read(v); trouble != "" {
			t.Errorf("the trouble remains: %q", trouble)
		}
	})
}
