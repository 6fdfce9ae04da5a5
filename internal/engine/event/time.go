package event

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

// Time is a time in a payload. It is a string that ParseTime can read, in UTC if it names
// no zone, or a number of seconds or milliseconds since 1970.
type Time struct{ time.Time }

// minMillis is the smallest number that is read as milliseconds. As seconds it would
// be in the year 5138.
const minMillis = 1e11

// UnmarshalJSON reads any of these forms.
func (t *Time) UnmarshalJSON(data []byte) (err error) {
	var text string

	switch {
	case data[0] == '"':
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}

		t.Time, err = ParseTime(text, time.UTC)
	case data[0] == '-' || data[0] >= '0' && data[0] <= '9':
		t.Time, err = sinceEpoch(string(data))
	default:
		err = errors.New("is not a time, expected one such as 2026-01-31T12:00:00Z or seconds since 1970")
	}

	return err
}

// UnmarshalText reads a string as UnmarshalJSON does.
func (t *Time) UnmarshalText(text []byte) (err error) {
	t.Time, err = ParseTime(string(text), time.UTC)

	return err
}

func sinceEpoch(text string) (time.Time, error) {
	number, err := strconv.ParseFloat(text, 64)
	unit := time.Second

	if math.Abs(number) >= minMillis {
		unit = time.Millisecond
	}

	if err != nil || math.Abs(number) > 1e15 { // the conversion to int64 must not overflow
		return time.Time{}, errYears
	}

	whole, fraction := math.Modf(number)
	perSecond := int64(time.Second / unit)
	t := time.Unix(int64(whole)/perSecond, int64(whole)%perSecond*int64(unit))

	return inYears(t.Add(time.Duration(fraction * float64(unit))).Round(time.Microsecond).UTC())
}

// TimePattern matches RFC 3339 and the common forms of ISO 8601: the separator may be a
// space, seconds and zone may be missing, the fraction may have a comma and any number
// of digits, and the zone may be +0100 or +01, or follow a space, as in git and Ruby.
const TimePattern = `^(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d+))?)?(?: ?([Zz]|[+-]\d{2}(?::?\d{2})?))?)?$`

var timeForm = regexp.MustCompile(TimePattern)

// ParseTime reads a time such as 2026-01-31T12:00:00Z, in zone if the text names none.
// A date means midnight. 24:00 is the midnight that ends the day. A leap second, which
// is only possible at the end of a month in UTC, becomes the next second, as in Postgres.
// Digits beyond nanoseconds are dropped. Week dates, ordinal dates and the basic form
// without hyphens are refused.
func ParseTime(text string, zone *time.Location) (time.Time, error) {
	// This is the usual form. Package time would also accept a one-digit hour.
	if t, err := time.Parse("2006-01-02T15:04:05.999999999Z", text); err == nil && text[len("2006-01-02T15")] == ':' {
		return inYears(t)
	}

	m := timeForm.FindStringSubmatch(text)
	if m == nil {
		return time.Time{}, noTime(text)
	}

	date, err := time.Parse(time.DateOnly, m[1])
	hour, minute, second := number(m[2]), number(m[3]), number(m[4])
	nanos := number((m[5] + "000000000")[:9])

	if err != nil || !isClock(hour, minute, second, nanos) {
		return time.Time{}, noTime(text)
	}

	if zone, err = zoneOf(m[6], zone); err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", noTime(text), err)
	}

	if second == 60 {
		nanos = 0
	}

	t := time.Date(date.Year(), date.Month(), date.Day(), hour, minute, second, nanos, zone).UTC()
	if second == 60 && (t.Day() != 1 || t.Truncate(24*time.Hour) != t) {
		return time.Time{}, fmt.Errorf("%w: a leap second ends a month in UTC", noTime(text))
	}

	return inYears(t)
}

// isClock reports whether this is a time of day, including 24:00 and leap seconds.
func isClock(hour, minute, second, nanos int) bool {
	endOfDay := hour == 24 && minute == 0 && second == 0 && nanos == 0

	return (hour <= 23 || endOfDay) && minute <= 59 && second <= 60
}

func number(digits string) int {
	n, _ := strconv.Atoi(digits) // "" is 0

	return n
}

// zoneOf returns the zone that m names: Z, +01, +0100 or +01:00. It returns missing if m
// is empty.
func zoneOf(m string, missing *time.Location) (*time.Location, error) {
	switch m {
	case "":
		return missing, nil
	case "Z", "z":
		return time.UTC, nil
	}

	hours, minutes := number(m[1:3]), 0
	if len(m) > 3 {
		minutes = number(m[len(m)-2:])
	}

	if hours > 23 || minutes > 59 {
		return nil, errors.New("the zone is more than a day")
	}

	seconds := (hours*60 + minutes) * 60
	if m[0] == '-' {
		seconds = -seconds
	}

	return time.FixedZone("", seconds), nil
}

func noTime(text string) error {
	return fmt.Errorf("is %.60q, expected a time such as 2026-01-31T12:00:00Z", text)
}

// errYears reports a year outside 1 to 9999, the years that RFC 3339, Go and Postgres can
// all write.
var errYears = errors.New("is out of range, expected a time in the years 1 to 9999")

func inYears(t time.Time) (time.Time, error) {
	if year := t.Year(); year < 1 || year > 9999 {
		return time.Time{}, errYears
	}

	return t, nil
}
