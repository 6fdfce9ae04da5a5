package health_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millracehq/millrace/internal/engine/health"
)

// hourly returns a loop with a round every hour, and its log.
func hourly() (*health.Loop, *bytes.Buffer) {
	var log bytes.Buffer

	return health.NewLoop("upkeep", health.Degraded, time.Hour, slog.New(slog.NewTextHandler(&log, nil))), &log
}

// expectWhy fails the test unless the loop has been in trouble since the given time,
// for the reason why. If why is empty, the loop must not be in trouble.
func expectWhy(t *testing.T, when string, loop *health.Loop, since time.Time, why string) {
	t.Helper()

	s := loop.State()
	if s.Name != "upkeep" || s.Level != health.Degraded || !strings.Contains(s.Why, why) || (why == "") != (s.Why == "") ||
		(why == "") != (s.Since == nil) || s.Since != nil && !s.Since.Equal(since) {
		t.Errorf("%s: got %+v, expected %q since %s", when, s, why, since)
	}
}

func TestALoopThatStandsStillSaysSinceWhenAndWhy(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		loop, _ := hourly()

		time.Sleep(2 * time.Hour)
		expectWhy(t, "before it begins", loop, time.Time{}, "")
		loop.Begin()

		began := time.Now().UTC()
		expectWhy(t, "at the beginning", loop, began, "")
		time.Sleep(2 * time.Hour)
		expectWhy(t, "without any round", loop, began, "no run has finished since then, expected one every 1h0m0s")
		loop.Report(nil)
		expectWhy(t, "after a round", loop, began, "")
	})
}

func TestALoopThatFailsSaysSinceWhenAndWhy(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		loop, log := hourly()
		loop.Begin()
		loop.Report(nil)

		time.Sleep(time.Minute)

		failed := time.Now().UTC()
		loop.Report(errors.New("the table is locked"))
		time.Sleep(time.Minute)
		loop.Report(errors.New("postgres://user:hunter2@db/ is unavailable"))
		expectWhy(t, "after two failures", loop, failed, "is unavailable")

		if why := loop.State().Why; strings.Contains(why, "hunter2") {
			t.Errorf("the state reveals a password: %s", why)
		}

		if n := strings.Count(log.String(), "upkeep failed"); n != 1 {
			t.Errorf("two failures within ten minutes are logged %d times:\n%s", n, log.String())
		}

		time.Sleep(10 * time.Minute)
		loop.Report(errors.New("the table is locked"))

		if n := strings.Count(log.String(), "upkeep failed"); n != 2 {
			t.Errorf("a failure that lasts is logged %d times:\n%s", n, log.String())
		}

		loop.Report(nil)
		expectWhy(t, "after the recovery", loop, failed, "")

		if !strings.Contains(log.String(), "upkeep recovered") {
			t.Errorf("the recovery is not logged:\n%s", log.String())
		}
	})
}

func TestTheWorstTroubleComesFirst(t *testing.T) {
	t.Parallel()

	list := health.Sort([]health.Trouble{
		{Name: "a", Level: health.Note}, {Name: "c", Level: health.Unready}, {Name: "b", Level: health.Unready}, {Name: "d", Level: health.Degraded},
	})

	var order []string
	for _, trouble := range list {
		order = append(order, trouble.Name)
	}

	if got := strings.Join(order, ""); got != "bcda" || health.Worst(list) != health.Unready || health.Worst(nil) != "" {
		t.Errorf("got %s, %s", got, health.Worst(list))
	}
}
