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

func TestALoopThatFailsOrStandsStillSaysSinceWhenAndWhy(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer

		began := time.Now().UTC()
		loop := health.NewLoop("upkeep", health.Degraded, time.Hour, slog.New(slog.NewTextHandler(&log, nil)))

		expect := func(when string, since time.Time, why string) {
			t.Helper()

			s := loop.State()
			if s.Name != "upkeep" || s.Level != health.Degraded || !strings.Contains(s.Why, why) || (why == "") != (s.Why == "") ||
				(why == "") != (s.Since == nil) || s.Since != nil && !s.Since.Equal(since) {
				t.Errorf("%s: got %+v, expected %q since %s", when, s, why, since)
			}
		}

		time.Sleep(2 * time.Hour)
		expect("before it begins", began, "")
		loop.Begin()

		began = time.Now().UTC()
		expect("at the beginning", began, "")
		time.Sleep(2 * time.Hour)
		expect("without any round", began, "no round has finished since then, expected one every 1h0m0s")
		loop.Report(nil)
		expect("after a round", began, "")

		time.Sleep(time.Minute)

		failed := time.Now().UTC()
		loop.Report(errors.New("the table is locked"))
		time.Sleep(time.Minute)
		loop.Report(errors.New("postgres://user:hunter2@db/ is away"))
		expect("after two failures", failed, "is away")

		if why := loop.State().Why; strings.Contains(why, "hunter2") {
			t.Errorf("the state reveals a password: %s", why)
		}

		if n := strings.Count(log.String(), "upkeep fails"); n != 1 {
			t.Errorf("two failures within ten minutes are logged %d times:\n%s", n, log.String())
		}

		time.Sleep(10 * time.Minute)
		loop.Report(errors.New("the table is locked"))

		if n := strings.Count(log.String(), "upkeep fails"); n != 2 {
			t.Errorf("a failure that lasts is logged %d times:\n%s", n, log.String())
		}

		loop.Report(nil)
		expect("after the recovery", failed, "")

		if !strings.Contains(log.String(), "upkeep works again") {
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
