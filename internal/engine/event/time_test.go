package event_test

import (
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
)

// timesAreRead checks that each spelling is read as the expected time in UTC.
func timesAreRead(t *testing.T, times map[string]string) {
	t.Helper()

	for spelling, want := range times {
		var at event.Time

		if err := at.UnmarshalJSON([]byte(spelling)); err != nil || at.Format(time.RFC3339Nano) != want {
			t.Errorf("%.60s: got %s, %v, expected %s", spelling, at.Format(time.RFC3339Nano), err, want)
		}
	}
}

func TestTimesAreReadAsRFC3339AndISO8601WriteThem(t *testing.T) {
	t.Parallel()
	timesAreRead(t, map[string]string{
		// RFC 3339
		`"2026-01-31T12:00:00Z"`:           "2026-01-31T12:00:00Z",
		`"2026-01-31t12:00:00z"`:           "2026-01-31T12:00:00Z",
		`"2026-01-31 12:00:00Z"`:           "2026-01-31T12:00:00Z",
		`"2026-01-31T12:00:00+01:00"`:      "2026-01-31T11:00:00Z",
		`"2026-01-31T12:00:00-05:30"`:      "2026-01-31T17:30:00Z",
		`"2026-01-31T12:00:00-00:00"`:      "2026-01-31T12:00:00Z",
		`"2026-01-31T12:00:00.5Z"`:         "2026-01-31T12:00:00.5Z",
		`"2026-01-31T12:00:00.123456789Z"`: "2026-01-31T12:00:00.123456789Z",
		`"2024-02-29T00:00:00Z"`:           "2024-02-29T00:00:00Z",
		// ISO 8601
		`"2026-01-31T12:00:00+0100"`:                  "2026-01-31T11:00:00Z",
		`"2026-01-31T12:00:00+01"`:                    "2026-01-31T11:00:00Z",
		`"2026-01-31T12:00:00+0000"`:                  "2026-01-31T12:00:00Z",
		`"2026-01-31T12:00:00+00"`:                    "2026-01-31T12:00:00Z",
		`"2026-01-31T12:00Z"`:                         "2026-01-31T12:00:00Z",
		`"2026-01-31T12:00+01:00"`:                    "2026-01-31T11:00:00Z",
		`"2026-01-31T12:00:00,5Z"`:                    "2026-01-31T12:00:00.5Z",
		`"2026-01-31T12:00:00.123456789999999Z"`:      "2026-01-31T12:00:00.123456789Z",
		`"2026-01-31T12:00:00.1234567+00:00"`:         "2026-01-31T12:00:00.1234567Z", // .NET
		`"2026-01-31T24:00:00Z"`:                      "2026-02-01T00:00:00Z",
		`"2026-12-31T24:00"`:                          "2027-01-01T00:00:00Z",
		`"2026-01-31"`:                                "2026-01-31T00:00:00Z",
		`"2016-12-31T23:59:60Z"`:                      "2017-01-01T00:00:00Z",
		`"2016-12-31T15:59:60.5-08:00"`:               "2017-01-01T00:00:00Z",
		`"2026-01-31 12:00:00 +0100"`:                 "2026-01-31T11:00:00Z", // git, Ruby
		`"2026-01-31 12:00:00+00"`:                    "2026-01-31T12:00:00Z", // Postgres
		`"2026-01-31 12:00:00.123456+00"`:             "2026-01-31T12:00:00.123456Z",
		`"2026-01-31T12:00:00"`:                       "2026-01-31T12:00:00Z", // Python's isoformat without a zone
		`"2026-01-31T12:00:00.123456"`:                "2026-01-31T12:00:00.123456Z",
		`"2026-01-31 12:00"`:                          "2026-01-31T12:00:00Z",
		`"9999-12-31T23:59:59Z"`:                      "9999-12-31T23:59:59Z",
		`"0001-01-01T00:00:00Z"`:                      "0001-01-01T00:00:00Z",
		`"2026-01-31T12:00:00\u002b01:00"`:            "2026-01-31T11:00:00Z",
		`"2026-01-31T12:00:00.` + many("1", 40) + `"`: "2026-01-31T12:00:00.111111111Z",
	})
}

func TestNumbersAreSecondsOrMillisecondsSince1970(t *testing.T) {
	t.Parallel()
	timesAreRead(t, map[string]string{
		`1769860800`:        "2026-01-31T12:00:00Z",
		`1769860800.5`:      "2026-01-31T12:00:00.5Z",
		`1769860800.123456`: "2026-01-31T12:00:00.123456Z",
		`1.7698608e9`:       "2026-01-31T12:00:00Z",
		`1769860800000`:     "2026-01-31T12:00:00Z",
		`1769860800123.0`:   "2026-01-31T12:00:00.123Z",
		`0`:                 "1970-01-01T00:00:00Z",
		`-1`:                "1969-12-31T23:59:59Z",
		`253402300799`:      "1978-01-11T21:31:40.799Z", // milliseconds
		`253402300799999`:   "9999-12-31T23:59:59.999Z",
		`1e-1000000000`:     "1970-01-01T00:00:00Z",
	})
}

func TestWhatIsNotATimeIsRefused(t *testing.T) {
	t.Parallel()

	const refused = "expected a time such as 2026-01-31T12:00:00Z"

	for spelling, says := range map[string]string{
		`1769860800000000`:                    "is out of range, expected a time in the years 1 to 9999", // microseconds
		`1769860800000000000`:                 "is out of range",                                         // nanoseconds
		`1e1000000000`:                        "is out of range",
		`-1e300`:                              "is out of range",
		`253402300800000`:                     "is out of range",
		`null`:                                "is not a time, expected one such as 2026-01-31T12:00:00Z or seconds since 1970",
		`true`:                                "is not a time",
		`{}`:                                  "is not a time",
		`""`:                                  `is "", ` + refused,
		`"now"`:                               refused,
		`"yesterday"`:                         refused,
		`"1769860800"`:                        refused,
		`"31.01.2026 12:00"`:                  refused,
		`"01/31/2026"`:                        refused,
		`"Sat, 31 Jan 2026 12:00:00 GMT"`:     refused,
		`"2026-01-31 12:00:00 UTC"`:           refused,
		`"2026-01-31T12:00:00[Europe/Paris]"`: refused,
		`"2026-01-31T12:00:00 01:00"`:         refused, // a + that became a space in a query
		`"20260131T120000Z"`:                  refused,
		`"20260131"`:                          refused,
		`"2026-W05-6"`:                        refused,
		`"2026-031"`:                          refused,
		`"2026-01"`:                           refused,
		`"2026-01-31T12"`:                     refused,
		`"2026-01-31T12Z"`:                    refused,
		`"2026-01-31T12:00.5Z"`:               refused,
		`"2026-01-31T12:00:00.Z"`:             refused,
		`"2026-01-31T12:00:00+1"`:             refused,
		`"2026-01-31T12:00:00+1:00"`:          refused,
		`"2026-01-31T12:00:00+24:00"`:         "the zone is more than a day",
		`"2026-01-31T12:00:00+01:60"`:         "the zone is more than a day",
		`"2026-1-31T12:00:00Z"`:               refused,
		`"2026-02-30T12:00:00Z"`:              refused,
		`"2025-02-29T00:00:00Z"`:              refused,
		`"2026-13-01T00:00:00Z"`:              refused,
		`"2026-01-31T25:00:00Z"`:              refused,
		`"2026-01-31T24:00:01Z"`:              refused,
		`"2026-01-31T12:60:00Z"`:              refused,
		`"2026-01-31T12:00:61Z"`:              refused,
		`"2026-01-31T12:00:60Z"`:              "a leap second ends a month in UTC",
		`"2016-12-31T23:59:60-08:00"`:         "a leap second ends a month in UTC",
		`" 2026-01-31"`:                       refused,
		`"2026-01-31\n"`:                      refused,
		`"٢٠٢٦-01-31"`:                        refused,
		`"0000-01-01T00:00:00Z"`:              "is out of range, expected a time in the years 1 to 9999",
		`"9999-12-31T23:59:59-10:00"`:         "is out of range",
		`"9999-12-31T24:00:00Z"`:              "is out of range",
		`"12026-01-31T12:00:00Z"`:             refused,
		`"-2026-01-31T12:00:00Z"`:             refused,
		`"` + many("2", 10000) + `"`:          refused,
		`"2026-01-31T1:00:00Z"`:               refused,
		`"2026-01-31T1:00:00.5Z"`:             refused,
	} {
		var at event.Time

		err := at.UnmarshalJSON([]byte(spelling))
		if err == nil {
			t.Errorf("%.60s was read as %s", spelling, at.Format(time.RFC3339Nano))

			continue
		}

		if got := err.Error(); !strings.HasPrefix(got, "is ") || !strings.Contains(got, says) || len(got) > 200 {
			t.Errorf("%.60s: got %s, expected %s", spelling, got, says)
		}
	}
}

func many(s string, n int) string { return strings.Repeat(s, n) }

func TestATimeWithoutAZoneIsInTheGivenOne(t *testing.T) {
	t.Parallel()

	zone := time.FixedZone("", 2*60*60)

	for spelling, want := range map[string]string{
		"2026-01-31T12:00:00":  "2026-01-31T10:00:00Z",
		"2026-01-31 12:00":     "2026-01-31T10:00:00Z",
		"2026-01-31":           "2026-01-30T22:00:00Z",
		"2026-01-31T12:00:00Z": "2026-01-31T12:00:00Z",
	} {
		if got, err := event.ParseTime(spelling, zone); err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%s: got %s, %v, expected %s", spelling, got, err, want)
		}
	}
}

func FuzzTime(f *testing.F) {
	for _, seed := range []string{`"2026-01-31T12:00:00.5+01:00"`, `"2016-12-31T23:59:60Z"`, `1769860800`, `-1e3`, `null`} {
		f.Add([]byte(seed))
	}

	f.Fuzz(func(t *testing.T, data []byte) {
		var at event.Time
		if len(data) == 0 || at.UnmarshalJSON(data) != nil {
			return
		}

		written, err := at.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}

		var again event.Time
		if err := again.UnmarshalJSON(written); err != nil || !again.Equal(at.Time) {
			t.Errorf("%s became %s and then %s, %v", data, at, again, err)
		}
	})
}
