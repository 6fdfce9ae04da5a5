package analytics_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestBadEventsSayWhatIsWrong(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ text, says string }{
		{`{}`, "event: is missing, expected a name of 1 to 200 characters; timestamp: is missing"},
		{`{"event":"e","timestamp":null}`, "timestamp: is"},
		{`{"event":"e","timestamp":"yesterday"}`, `timestamp: is "yesterday", expected a time`},
		{`{"event":"e","timestamp":true}`, "timestamp: is not a time"},
		{`{"event":"e","timestamp":""}`, `timestamp: is "", expected a time`},
		{`{"event":"e","timestamp":[1]}`, "timestamp: is not a time"},
		{`{"event":"e","timestamp":-1}`, "timestamp: is out of range, expected a time from 1970 to 9998"},
		{`{"event":"e","timestamp":"9999-01-01"}`, "timestamp: is out of range, expected a time from 1970 to 9998"},
		{`{"event":" ","timestamp":1}`, "event: is missing"},
		{`{"event":"e","timestamp":1,"user_id":"\n"}`, `user_id: is "\n", expected printable characters`},
		{`{"event":"e","timestamp":1e300}`, "timestamp: is out of range"},
		{`{"event":"e","timestamp":1,"properties":[1]}`, "properties: is not an object"},
		{`{"event":"e","timestamp":1,"properties":{"a":"\u0000"}}`, "properties: contains the character U+0000"},
		{`{"event":"e","timestamp":1,"properties":{"a":1e999999}}`, "properties: contains the number 1e999999"},
		{`{"event":"` + strings.Repeat("e", 201) + `","timestamp":1}`, "event: has 201 characters"},
	} {
		_, err := event.Decode[analytics.Tracked]([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.60s: got %v, expected %q", c.text, err, c.says)
		}
	}
}

func TestEventsAreStoredAndCounted(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	s := analytics.NewService(analytics.Config{Retention: 72 * time.Hour}, pool)
	now := time.Now().UTC()

	if err := s.EnsurePartitions(t.Context(), now); err != nil {
		t.Fatal(err)
	}

	var events []event.Event[analytics.Tracked]

	add := func(name string, at time.Time, n int) {
		for i := range n {
			p := analytics.Tracked{Event: name, Timestamp: event.Time{Time: at}, UserID: fmt.Sprint("u", i)}
			events = append(events, event.Event[analytics.Tracked]{Meta: event.Start(p).Meta, Payload: p})
		}
	}
	add("login", now, 3)
	add("view", now, 5)
	add("view", now.AddDate(0, 0, -1), 2)
	add("view", now.AddDate(-20, 0, 0), 1)

	for range 2 { // counts accumulate
		err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := s.Track(t.Context(), tx, events)

			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	top, err := s.Top(t.Context(), 2, 10)
	if err != nil || fmt.Sprint(top) != "[{view 14} {login 6}]" {
		t.Errorf("top: got %v, %v", top, err)
	}

	daily, err := s.Daily(t.Context(), "view", 3)
	if err != nil || len(daily) != 3 || daily[0].Count != 0 || daily[1].Count != 4 || daily[2].Count != 10 {
		t.Errorf("daily: got %v, %v", daily, err)
	}

	// A week later, expired events are gone, but the counts remain.
	if _, err := s.Clean(t.Context(), now.AddDate(0, 0, 7)); err != nil {
		t.Fatal(err)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*) FROM analytics_events`); n != 0 {
		t.Errorf("%d events are kept", n)
	}

	if n := pgtest.Value[int](t, pool, `SELECT sum(count)::int FROM analytics_daily`); n != 22 {
		t.Errorf("the counts add up to %d", n)
	}
}

func FuzzTracked(f *testing.F) {
	for _, seed := range []string{
		`{"event":"e","timestamp":"2026-01-31T12:00:00"}`, `{"event":"e","timestamp":1e11,"properties":{"a":-1.5E+3}}`, `{"timestamp":"\u0032"}`, `{"event":"e","timestamp":-0}`,
	} {
		f.Add([]byte(seed))
	}

	f.Fuzz(func(t *testing.T, data []byte) {
		tracked, err := event.Decode[analytics.Tracked](data)

		var rejection *event.RejectError
		if err != nil && (!errors.As(err, &rejection) || err.Error() == "") {
			t.Errorf("not a rejection with a message: %v", err)
		}

		if err == nil && (tracked.Event == "" || tracked.Timestamp.Year() < 1970 || tracked.Timestamp.Year() > 9998) {
			t.Errorf("accepted: %+v", tracked)
		}
	})
}
