package event_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
)

type level int8

type counted struct {
	ID     string           `json:"id"`
	Count  *int64           `json:"count"`
	Small  *int32           `json:"small"`
	Times  int              `json:"times"`
	Level  level            `json:"level"`
	ByName map[string]int64 `json:"by_name"`
	List   []int64          `json:"list"`
}

func (counted) Topic() string   { return "counts" }
func (c counted) Key() string   { return c.ID }
func (counted) Validate() error { return nil }

func TestSpellingsOfWholeNumbers(t *testing.T) {
	t.Parallel()

	for spelling, want := range map[string]string{
		`2`:                          "2",
		`2.0`:                        "2",
		`2.000000000000000000000000`: "2",
		`2e0`:                        "2",
		`2E+0`:                       "2",
		`20e-1`:                      "2",
		`0.2e1`:                      "2",
		`0.0002e+4`:                  "2",
		`2000e-3`:                    "2",
		`-2.0`:                       "-2",
		`0`:                          "0",
		`-0`:                         "0",
		`0.0`:                        "0",
		`0e1000000000`:               "0",
		`-0e-99999999999999999999`:   "0",
		`1e18`:                       "1000000000000000000",
		`9223372036854775807`:        "9223372036854775807",
		`9.223372036854775807e18`:    "9223372036854775807",
		`-9223372036854775808`:       "-9223372036854775808",
		`-9223372036854775808.0`:     "-9223372036854775808",
		`null`:                       "nothing",
	} {
		decoded, err := event.Decode[counted]([]byte(`{"count":` + spelling + `}`))
		got := "nothing"

		if decoded.Count != nil {
			got = fmt.Sprint(*decoded.Count)
		}

		if err != nil || got != want {
			t.Errorf("%s: got %s, %v, expected %s", spelling, got, err, want)
		}
	}
}

func TestWhatIsNoWholeNumberIsMalformed(t *testing.T) {
	t.Parallel()

	for spelling, says := range map[string]string{
		`2.5`:                           "count: is 2.5, expected a whole number",
		`25e-1`:                         "count: is 25e-1, expected a whole number",
		`-0.1`:                          "count: is -0.1, expected a whole number",
		`1e-1000000000`:                 "count: is 1e-1000000000, expected a whole number",
		`1e-99999999999999999999`:       "expected a whole number",
		`2.0000000000000000000000001`:   "expected a whole number",
		`9223372036854775808`:           "count: is 9223372036854775808, out of range, expected a whole number",
		`-9223372036854775809`:          "out of range, expected a whole number",
		`1e19`:                          "count: is 1e19, out of range",
		`1e1000000000`:                  "count: is 1e1000000000, out of range",
		`1e99999999999999999999`:        "out of range",
		`1` + strings.Repeat("0", 9999): "count: is 1000000000000000000000000000000000000000, out of range",
		`"2"`:                           "count: is a JSON string, expected a whole number",
		`""`:                            "count: is a JSON string, expected a whole number",
		`true`:                          "count: is a JSON boolean, expected a whole number",
		`[2]`:                           "count: is a JSON array, expected a whole number",
		`{"n":2}`:                       "count: is a JSON object, expected a whole number",
		`02`:                            "not valid JSON",
		`+2`:                            "count: not valid JSON",
		`.5`:                            "count: not valid JSON",
		`2.`:                            "count: not valid JSON",
		`0x2`:                           "not valid JSON",
		`2_000`:                         "not valid JSON",
		`NaN`:                           "count: not valid JSON",
		`Infinity`:                      "count: not valid JSON",
	} {
		_, err := event.Decode[counted]([]byte(`{"count":` + spelling + `}`))

		rejection, ok := errors.AsType[*event.RejectError](err)
		if !ok || rejection.Reason != event.ReasonMalformed || !strings.Contains(err.Error(), says) {
			t.Errorf("%.50s: got %v, expected %s", spelling, err, says)
		}
	}
}

func TestWholeNumbersFitTheirType(t *testing.T) {
	t.Parallel()

	got, err := event.Decode[counted]([]byte(`{"count":1,"small":2.0,"times":3e0,"level":4.0,"by_name":{"a":5,"b":6.0},"list":[7,8.0,9]}`))
	if err != nil || *got.Count != 1 || *got.Small != 2 || got.Times != 3 || got.Level != 4 || got.ByName["a"] != 5 || got.ByName["b"] != 6 || len(got.List) != 3 || got.List[1] != 8 {
		t.Errorf("got %+v, %v", got, err)
	}

	if got, err = event.Decode[counted]([]byte(`{"small":null,"times":null}`)); err != nil || got.Small != nil || got.Times != 0 {
		t.Errorf("null: got %+v, %v", got, err)
	}

	for payload, says := range map[string]string{
		`{"small":3e9}`:                  "small: is 3e9, out of range",
		`{"level":1000}`:                 "level: is 1000, out of range",
		`{"level":1.5}`:                  "level: is 1.5, expected a whole number",
		`{"by_name":{"a":1.0,"b":1.5}}`:  "by_name.b: is 1.5, expected a whole number",
		`{"list":[1,2.0,2.5]}`:           "list[2]: is 2.5, expected a whole number",
		`{"times":1.0,"count":"1"}`:      "count: is a JSON string, expected a whole number",
		`{"times":1.0,"list":{"0":1.0}}`: "list: is a JSON object, expected an array",
	} {
		if _, err := event.Decode[counted]([]byte(payload)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, expected %q", payload, err, says)
		}
	}
}

func TestHugeNumbersCostNoMemory(t *testing.T) { // not parallel: it measures the process
	var before, after runtime.MemStats

	runtime.ReadMemStats(&before)

	for _, exponent := range []string{"1e1000000000", "-1e1000000000", "1e-1000000000", "1e999999999999999999999"} {
		if _, err := event.Decode[counted]([]byte(`{"count":` + exponent + `}`)); err == nil {
			t.Errorf("%s was accepted", exponent)
		}

		var at event.Time
		if err := at.UnmarshalJSON([]byte(exponent)); err == nil && exponent != "1e-1000000000" {
			t.Errorf("%s was accepted as a time", exponent)
		}
	}

	runtime.ReadMemStats(&after)

	if used := after.TotalAlloc - before.TotalAlloc; used > 10<<20 {
		t.Errorf("%d bytes were allocated", used)
	}
}

func BenchmarkDecode(b *testing.B) {
	payload := []byte(`{"id":"order_123","count":2,"small":3,"times":1}`)

	for b.Loop() {
		if _, err := event.Decode[counted](payload); err != nil {
			b.Fatal(err)
		}
	}
}
