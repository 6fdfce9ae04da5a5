package failed

import (
	"strings"
	"testing"

	"github.com/itchyny/gojq"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/event"
)

// transformed returns the payload that an expression makes of another, or the error.
func transformed(tb testing.TB, expression, payload string) (string, error) {
	tb.Helper()

	code, err := compileJQ(expression)
	if err != nil {
		return "", err
	}

	edited, err := transform(tb.Context(), code, []byte(payload))

	return string(edited), err
}

func TestAnExpressionChangesNothingElse(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ expression, payload, want string }{
		{`.b = 3`, `{"z":1.10,"b":2,"a":12345678901234567890.5}`, `{"z":1.10,"b":3,"a":12345678901234567890.5}`},
		{`.`, " {\"b\": 1.0,\n \"a\": \"\\u00e9\"} ", " {\"b\": 1.0,\n \"a\": \"\\u00e9\"} "},
		{`.n |= . + 1 | .n |= . - 1`, `{"n":2.0,"s":"\u00e9\/"}`, `{"n":2.0,"s":"\u00e9\/"}`},
		{`.n += 1`, `{"n":9223372036854775807,"m":1e2}`, `{"n":9223372036854775808,"m":1e2}`},
		{`.n |= tonumber`, `{"n":"1.10","m":"x"}`, `{"n":1.1,"m":"x"}`},
		{`del(.a) | .c = {"y":1,"x":2}`, `{"b":1,"a":2}`, `{"b":1,"c":{"x":2,"y":1}}`},
		{`.items |= map(select(.q > 0))`, `{"items":[{"q":0},{"q":1.50,"p":"\u00e9"},{"q":2}]}`, `{"items":[{"q":1.50,"p":"\u00e9"},{"q":2}]}`},
		{`.items[1].q = 5`, `{"items":[ {"q": 1.50, "p": "a"}, {"q":2.0,"p":"b"}]}`, `{"items":[{"q": 1.50, "p": "a"},{"q":5,"p":"b"}]}`},
		{`.order`, `{"order":{"total":1.10,"id":"o"}}`, `{"id":"o","total":1.10}`},
		{`.[0]`, `[{"id":"o"}]`, `{"id":"o"}`},
		{`.a = null | .t = true | .t2 = false`, `{"a":1,"t":true,"t2":"x"}`, `{"a":null,"t":true,"t2":false}`},
		{`.text = "<&>"`, `{"<&>":1}`, `{"<&>":1,"text":"<&>"}`},
		{`.a = $ENV | .b = env`, `{"a":1}`, `{"a":{},"b":{}}`},
		{`.a`, "\xef\xbb\xbf" + `{"a":{"b":1}}`, `{"b":1}`},
	} {
		if got, err := transformed(t, c.expression, c.payload); got != c.want || err != nil {
			t.Errorf("%s on %s: got %s, %v; expected %s", c.expression, c.payload, got, err, c.want)
		}
	}
}

func TestExpressionsThatCannotBeAppliedAreExplained(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		expression, payload string
		kind                event.Kind
		says                string
	}{
		{`."é" | | .b`, `{}`, event.Invalid, `jq: unexpected token "|" at character 8 of "`},
		{`.a |`, `{}`, event.Invalid, `jq: unexpected EOF at character 5`},
		{`"a`, `{}`, event.Invalid, `jq: unterminated string literal at character`},
		{`nosuch(.a)`, `{}`, event.Invalid, `jq: function not defined: nosuch/1`},
		{`$x`, `{}`, event.Invalid, `jq: variable not defined: $x`},
		{`input`, `{}`, event.Invalid, `jq: input(s)/0 is not allowed`},
		{`import "m" as m; .`, `{}`, event.Invalid, `jq: `},
		{`def f: f; f`, `{}`, event.Invalid, `jq: runs longer than 250ms`},
		{`.a.b`, `{"a":5}`, event.Rejected, `jq: expected an object but got: number (5)`},
		{`error("no id")`, `{}`, event.Rejected, `jq: error: no id`},
		{`halt`, `{}`, event.Rejected, `jq: `},
		{`empty`, `{}`, event.Rejected, `jq: yields no value`},
		{`., .`, `{}`, event.Rejected, `jq: yields several values`},
		{`.a = nan`, `{}`, event.Rejected, `jq: yields NaN`},
		{`.a = infinite`, `{}`, event.Rejected, `jq: yields +Inf`},
		{`reduce range(60) as $i (.; [., .])`, `{}`, event.Rejected, `jq: yields more than 1048576 bytes`},
		{`reduce range(100) as $i (.; [.])`, `{}`, event.Rejected, `jq: yields more than 64 levels`},
		{`.`, `{"a":`, event.Rejected, `the payload: is not JSON`},
		{`.`, ``, "", `payload: is empty`},
		{`.`, strings.Repeat("[", 70) + strings.Repeat("]", 70), "", `payload: nests deeper than 64 levels`},
	} {
		_, err := transformed(t, c.expression, c.payload)
		if err == nil || event.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s on %.20s: got %q (%s), expected %s (%s)", c.expression, c.payload, err, event.KindOf(err), c.says, c.kind)
		}
	}
}

// Whatever an expression makes of a payload is the value that jq yields.
func TestAnEditHasTheValueOfTheExpression(t *testing.T) {
	t.Parallel()

	expressions := rapid.SampledFrom([]string{
		`.`, `.a = 1.50`, `del(.a)`, `map_values(.)`, `with_entries(.value |= [.])`, `[.[]?]`, `. + {"c.d":{"b":[1]}}`, `.. |= (numbers |= . + 1)`,
		`map_values(if type == "array" then reverse + [0] else . end)`, `map_values(if type == "array" then .[1:] else . end)`, `tojson`, `keys`,
	})

	rapid.Check(t, func(t *rapid.T) {
		expression, object := expressions.Draw(t, "expression"), objects(3).Draw(t, "payload")

		payload, err := gojq.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}

		code, err := compileJQ(expression)
		if err != nil {
			t.Fatal(err)
		}

		input, err := decodeNumbers(payload)
		if err != nil {
			t.Fatal(err)
		}

		value, _ := code.Run(input).Next()
		if err, is := value.(error); is {
			t.Skip(err)
		}

		edited, err := transform(t.Context(), code, payload)
		if err != nil {
			t.Fatal(err)
		}

		got, err := decodeNumbers(edited)
		if err != nil {
			t.Fatalf("%s: %v", edited, err)
		}

		if gojq.Compare(got, value) != 0 {
			t.Errorf("%s on %s: got %s, expected %v", expression, payload, edited, value)
		}
	})
}
