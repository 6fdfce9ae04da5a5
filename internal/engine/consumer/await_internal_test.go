package consumer

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// A message that awaits another one is tried rarely, because its key is woken when the
// other one is applied.
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

// Each read replaces the awaited topics, except those of messages parked during the read.
func TestAwaitedTopicsAreForgottenWhenNothingAwaitsThem(t *testing.T) {
	t.Parallel()

	var a awaited

	expect := func(want ...string) {
		t.Helper()

		if got := slices.Sorted(maps.Keys(a.topics)); !slices.Equal(got, want) {
			t.Errorf("awaited are %v, expected %v", got, want)
		}
	}

	a.add([]string{"users", "orders"})
	a.set([]string{"orders"}, time.Now())
	expect("orders")

	for range 3 { // a message is parked during each read
		began := time.Now()

		a.add([]string{"users"})
		a.set([]string{"users", "notes"}, began)
		expect("notes", "users")
	}

	a.set(nil, time.Now())
	expect()
}

// After a stall, the backlog is allowed as long as the stall lasted, up to an hour.
func TestTheBacklogOfAStallIsServedFirst(t *testing.T) {
	t.Parallel()

	began := time.Now()

	for lasts, backlog := range map[time.Duration]time.Duration{
		0: 0, time.Second: time.Second, 20 * time.Minute: 20 * time.Minute, 2 * time.Hour: time.Hour,
	} {
		s := stall{began: began.Add(-24 * time.Hour), ended: began.Add(-23 * time.Hour)} // an earlier one
		for at := time.Duration(0); at <= lasts; at += time.Second {
			s = s.extended(began.Add(at))
		}

		if got := s.served().Sub(began.Add(lasts)); got != backlog {
			t.Errorf("after a stall of %s the backlog has %s, expected %s", lasts, got, backlog)
		}
	}
}
