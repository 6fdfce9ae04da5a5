package consumer

import (
	"testing"
	"time"
)

// What a process has seen of a stall ends with it: another one grants its backlog no time.
func TestARestartForgetsHowLongAStallWas(t *testing.T) {
	t.Parallel()

	topics := []string{"users"}
	before, after := &Router{stalls: stalls{latest: map[string]stall{}}}, &Router{stalls: stalls{latest: map[string]stall{}}}
	now := time.Now()

	for at := now.Add(-20 * time.Minute); !at.After(now); at = at.Add(time.Second) {
		before.stalls.latest["users"] = before.stalls.latest["users"].extended(at)
	}

	if left := before.servedSince(topics).Sub(now).Round(time.Minute); left != 20*time.Minute {
		t.Errorf("the backlog has %s, expected 20m", left)
	}

	if since := after.servedSince(topics); !since.IsZero() {
		t.Errorf("after a restart the backlog has until %s", since)
	}
}
