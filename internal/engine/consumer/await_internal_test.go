package consumer

import (
	"testing"
	"time"
)

// A message that awaits another one is tried rarely: when that one is applied, its key
// is woken.
func TestAwaitingMessagesAreNotTriedInATightLoop(t *testing.T) {
	t.Parallel()

	cfg := DefaultConfig()
	attempts, age := 0, time.Duration(0)

	for ; age < cfg.AwaitTimeout; attempts++ {
		wait := cfg.await(age)
		if age == 0 && wait > time.Second {
			t.Errorf("the first wait is %s, expected less than a second", wait)
		}

		age += wait
	}

	if attempts > 6 || age != cfg.AwaitTimeout {
		t.Errorf("%d attempts in %s, expected few until %s", attempts, age, cfg.AwaitTimeout)
	}
}
