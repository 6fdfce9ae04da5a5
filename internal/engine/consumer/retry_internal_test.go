package consumer

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// TestTheQuickRetriesHoldTheirKeyBriefly shows a known limit: a message that fails holds
// its key while it is tried again, some 200 ms in all and never more than 600.
func TestTheQuickRetriesHoldTheirKeyBriefly(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		tries, began := 0, time.Now()

		_, err := quickRetries(DefaultConfig()).Middleware(func(*message.Message) ([]*message.Message, error) {
			tries++

			return nil, errors.New("it fails")
		})(message.NewMessage("1", nil))

		if took := time.Since(began); err == nil || tries != 4 || took < 100*time.Millisecond || took > 600*time.Millisecond {
			t.Errorf("%d tries in %s, %v", tries, took, err)
		}
	})
}
