package event_test

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
)

// family is three emoji that are joined by U+200D.
const family = "\U0001F468\u200d\U0001F469\u200d\U0001F467"

func TestKindsOfText(t *testing.T) {
	t.Parallel()

	const (
		printable = "expected printable characters"
		oneLine   = "expected one line without control characters"
		missing   = "is missing, expected 1 to "
		nul       = "contains the character U+0000, which cannot be stored"
		utf8      = "is not UTF-8"
		ok        = ""
	)

	for name, c := range map[string]struct{ value, id, name, text string }{ // the expected error of each kind
		"a word":                     {"order_123", ok, ok, ok},
		"spaces":                     {"order 123", ok, ok, ok},
		"other scripts":              {"заказ-β-注文-Ünïcode", ok, ok, ok},
		"a combining mark":           {"e\u0301", ok, ok, ok},
		"URL characters":             {"a/b?c#d%00&e=..", ok, ok, ok},
		"quotes":                     {`"'\<>`, ok, ok, ok},
		"an old emoji":               {"\U0001F600", ok, ok, ok},
		"an emoji to come":           {"\U0001FFFD", printable, ok, ok},
		"private use":                {"\ue000", printable, ok, ok},
		"a non-character":            {"\uffff", printable, ok, ok},
		"a replacement character":    {"M\ufffdller", printable, ok, ok},
		"a family":                   {family, printable, ok, ok},
		"a zero-width non-joiner":    {"نامه\u200cای", printable, ok, ok},
		"an ideographic space":       {"山田\u3000太郎", printable, ok, ok},
		"a no-break space":           {"Jean\u00a0Luc", printable, ok, ok},
		"a narrow no-break space":    {"1\u202f000", printable, ok, ok},
		"a soft hyphen":              {"Donau\u00addampf", printable, ok, ok},
		"a byte order mark":          {"\ufeffname", printable, ok, ok},
		"a bidi override":            {"abc\u202edef", printable, ok, ok},
		"a bidi isolate":             {"\u2068Alice\u2069", printable, ok, ok},
		"a line break":               {"one\ntwo", printable, oneLine, ok},
		"a Windows line break":       {"one\r\ntwo", printable, oneLine, ok},
		"a tab":                      {"one\ttwo", printable, oneLine, ok},
		"an escape sequence":         {"\x1b[31mred", printable, oneLine, ok},
		"DEL":                        {"a\x7f", printable, oneLine, ok},
		"a C1 control sequence":      {"\u009b31mred", printable, oneLine, ok},
		"next line":                  {"one\u0085two", printable, oneLine, ok},
		"a line separator":           {"one\u2028two", printable, oneLine, ok},
		"a paragraph separator":      {"one\u2029two", printable, oneLine, ok},
		"nothing":                    {"", missing, missing, ok},
		"a space":                    {" ", ok, missing, ok},
		"only an ideographic space":  {"\u3000", printable, missing, ok},
		"only joiners":               {"\u200d\u200b\ufe0f", printable, missing, ok},
		"a Hangul filler":            {"\u3164", ok, missing, ok},
		"a Braille blank":            {"\u115f\u2800", ok, missing, ok},
		"NUL":                        {"a\x00", printable, oneLine, nul},
		"not UTF-8":                  {"a\xff", printable, utf8, utf8},
		"half a surrogate pair":      {"\xed\xa0\xbd", printable, utf8, utf8},
		"200 letters":                {strings.Repeat("x", 200), ok, ok, ok},
		"201 letters":                {strings.Repeat("x", 201), "has 201 bytes, expected at most 200", "has 201 characters, expected at most 200", "has 201 characters, expected at most 200"},
		"200 letters of three bytes": {strings.Repeat("注", 200), "has 600 bytes", ok, ok},
	} {
		for kind, check := range map[string]struct {
			err  error
			says string
		}{
			"ID":   {event.CheckID("a.b", c.value), c.id},
			"name": {event.CheckName("a.b", c.value, 200), c.name},
			"text": {event.CheckText("a.b", c.value, 200), c.text},
		} {
			switch {
			case (check.err == nil) != (check.says == ok):
				t.Errorf("%s as %s: got %v, expected %q", name, kind, check.err, check.says)
			case check.err != nil && (!strings.HasPrefix(check.err.Error(), "a.b: ") || !strings.Contains(check.err.Error(), check.says)):
				t.Errorf("%s as %s: got %v, expected %q", name, kind, check.err, check.says)
			case check.err != nil && !event.Printable(check.err.Error()):
				t.Errorf("%s as %s: the error %q is not printable", name, kind, check.err)
			}
		}
	}
}

func TestShortenKeepsCharactersWhole(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		text string
		most int
		want string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"", 3, ""}, {"ab注", 3, "ab"}, {"ab注", 4, "ab"}, {"ab注", 5, "ab注"}, {"注", 2, ""}, {"\xff\xff", 1, "\xff"},
	} {
		if got := event.Shorten(c.text, c.most); got != c.want {
			t.Errorf("%q, %d: got %q, expected %q", c.text, c.most, got, c.want)
		}
	}
}

func TestTextQuotesWhatPostgresCannotStore(t *testing.T) {
	t.Parallel()

	for text, want := range map[string]string{
		"":              "",
		"a\tb\n\u202e注": "a\tb\n\u202e注",
		"a\x00b":        `"a\x00b"`,
		"a\xffb":        `"a\xffb"`,
		"\xed\xa0\x80":  `"\xed\xa0\x80"`,
	} {
		if got := event.Text(text); got != want || event.Storable(got) != nil {
			t.Errorf("%q: got %q, expected %q", text, got, want)
		}
	}
}
