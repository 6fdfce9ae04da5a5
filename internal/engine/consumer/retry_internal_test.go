package consumer

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// TestTheQuickRetriesHoldTheirKeyBriefly shows a known limit: a message that fails holds
// its key while it is tried again, after 50, 112 and 253 ms with the defaults, each up to
// a half shorter or longer.
func TestTheQuickRetriesHoldTheirKeyBriefly(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		for range 1000 {
			var tried []time.Time

			_, err := quickRetries(DefaultConfig()).Middleware(func(*message.Message) ([]*message.Message, error) {
				tried = append(tried, time.Now())

				return nil, errors.New("it fails")
			})(message.NewMessage("1", nil))

			if err == nil || len(tried) != 4 {
				t.Fatalf("%d tries, %v", len(tried), err)
			}

			for i, want := range []time.Duration{50 * time.Millisecond, 112500 * time.Microsecond, 253125 * time.Microsecond} {
				// The library rounds intervals to nanoseconds.
				waited := tried[i+1].Sub(tried[i])
				if waited < want/2-time.Microsecond || waited > want*3/2+time.Microsecond {
					t.Fatalf("retry %d came after %s, want %s to %s", i+1, waited, want/2, want*3/2)
				}
			}
		}
	})
}
