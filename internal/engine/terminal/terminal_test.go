package terminal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"text/tabwriter"
	"unicode"

	"github.com/millracehq/millrace/internal/engine/terminal"
)

func TestWhatATerminalObeysIsEscaped(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ in, line, written string }{ // "" means unchanged
		{"", "", ""},
		{"plain text, \"quoted\" \\ escaped", "", ""},
		{"注文 заказ é e\u0301 \u00a0\u3000", "", ""},
		{"👨\u200d👩\u200d👧 نام\u200cه \U0001FFFD", "", ""},
		{"marks \u200e\u200f\u061c", "", ""},
		{"a\ufffdb\ufeffc", "", ""},
		{"one\ntwo\tthree", `one\ntwo\tthree`, "one\ntwo\tthree"},
		{"one\r\ntwo", `one\r\ntwo`, "one\\r\ntwo"},
		{"\x00\a\b\x1b[31m", `\u0000\u0007\u0008\u001b[31m`, `\u0000\u0007\u0008\u001b[31m`},
		{"\x7f", `\u007f`, `\u007f`},
		{"\u0080\u0085\u009b31m\u009d\u009f", `\u0080\u0085\u009b31m\u009d\u009f`, `\u0080\u0085\u009b31m\u009d\u009f`},
		{"\u202aa\u202bb\u202cc\u202dd\u202ee", `\u202aa\u202bb\u202cc\u202dd\u202ee`, `\u202aa\u202bb\u202cc\u202dd\u202ee`},
		{"\u2066a\u2067b\u2068c\u2069d", `\u2066a\u2067b\u2068c\u2069d`, `\u2066a\u2067b\u2068c\u2069d`},
		{"a\u2028b\u2029c", `a\u2028b\u2029c`, `a\u2028b\u2029c`},
		{"\x9b31m", `\x9b31m`, `\x9b31m`},
		{"注\xe6\xb3", `注\xe6\xb3`, `注\xe6\xb3`},
	} {
		if c.line == "" {
			c.line, c.written = c.in, c.in
		}

		if got := terminal.Line(c.in); got != c.line {
			t.Errorf("the line of %q is %q, expected %q", c.in, got, c.line)
		}

		var out bytes.Buffer
		if n, err := terminal.NewWriter(&out).Write([]byte(c.in)); n != len(c.in) || err != nil || out.String() != c.written {
			t.Errorf("%q is written as %q, %d, %v, expected %q", c.in, out.String(), n, err, c.written)
		}
	}
}

func TestWrittenJSONHasTheSameValue(t *testing.T) {
	t.Parallel()

	var all strings.Builder
	for r := range rune(0x3000) {
		all.WriteRune(r)
	}

	var out bytes.Buffer

	encoder := json.NewEncoder(terminal.NewWriter(&out))
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)

	value := map[string]string{all.String(): all.String()}
	if err := encoder.Encode(value); err != nil {
		t.Fatal(err)
	}

	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back[all.String()] != all.String() {
		t.Errorf("%v: the value has changed", err)
	}

	if i := strings.IndexFunc(out.String(), func(r rune) bool {
		return r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e)
	}); i >= 0 {
		t.Errorf("%q is not escaped", out.String()[i:i+4])
	}
}

func TestLogsAreEscapedInBothFormats(t *testing.T) {
	t.Parallel()

	var out bytes.Buffer

	for _, handler := range []slog.Handler{slog.NewTextHandler(terminal.NewWriter(&out), nil), slog.NewJSONHandler(terminal.NewWriter(&out), nil)} {
		slog.New(handler).Info("message\u009b", slog.String("key", "\x1b\u009b\x7f\u202e"), slog.Any("error", errors.New("a\u009bb")))
	}

	if i := strings.IndexFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("got %q", out.String())
	}
}

func TestATableKeepsItsColumns(t *testing.T) {
	t.Parallel()

	var out bytes.Buffer

	w := tabwriter.NewWriter(terminal.NewWriter(&out), 0, 0, 2, ' ', 0)
	_, _ = io.WriteString(w, "A\tB\n"+terminal.Line("\u009b31m")+"\tx\n")
	_ = w.Flush()

	if got := out.String(); got != "A          B\n\\u009b31m  x\n" {
		t.Errorf("got %q", got)
	}
}

func FuzzLine(f *testing.F) {
	f.Add("a\x1b\u009b\xff\u202e注")

	f.Fuzz(func(t *testing.T, s string) {
		line := terminal.Line(s)
		if terminal.Line(line) != line {
			t.Errorf("%q has something left to escape in %q", s, line)
		}

		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' }) {
			t.Errorf("%q became %q", s, line)
		}
	})
}
