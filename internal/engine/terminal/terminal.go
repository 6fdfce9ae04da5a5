// Package terminal makes text safe to print. Text from elsewhere can contain characters
// that a terminal obeys rather than shows, such as U+001B and U+009B, or that make it
// show text in a different order, such as U+202E.
package terminal

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line returns s as one line: line breaks, tabs, control characters and direction
// overrides are escaped, for example as \n or \u009b.
func Line(s string) string { return escape(s, "") }

// writer escapes what is written to it.
type writer struct{ to io.Writer }

// NewWriter returns a writer that escapes everything written to it as Line does, except
// line breaks and tabs. JSON stays the same JSON, because its strings can contain the
// same escapes. Each call to Write must pass whole characters.
func NewWriter(to io.Writer) io.Writer { return writer{to} }

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.to, escape(string(p), "\n\t")); err != nil {
		return 0, err
	}

	return len(p), nil
}

// escape escapes unsafe characters, except those in keep. It also escapes bytes that
// are not UTF-8, because some terminals take a lone 0x9b for a control character.
func escape(s, keep string) string {
	var b strings.Builder

	done := 0 // the bytes of s that are in b

	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		invalid := r == utf8.RuneError && size == 1

		if invalid || obeyed(r) && !strings.ContainsRune(keep, r) {
			b.WriteString(s[done:i])
			b.WriteString(escaped(r, s[i], invalid))

			done = i + size
		}

		i += size
	}

	if done == 0 {
		return s
	}

	return b.String() + s[done:]
}

func escaped(r rune, first byte, invalid bool) string {
	switch {
	case invalid:
		return fmt.Sprintf(`\x%02x`, first)
	case r == '\n':
		return `\n`
	case r == '\r':
		return `\r`
	case r == '\t':
		return `\t`
	default:
		return fmt.Sprintf(`\u%04x`, r)
	}
}

// directions are the characters that embed, override or isolate the direction of text
// (Unicode Standard Annex 9, section 2, of Unicode 17). The marks of section 2.6 are
// not among them: they affect only neighbouring punctuation.
var directions = &unicode.RangeTable{R16: []unicode.Range16{{Lo: 0x202a, Hi: 0x202e, Stride: 1}, {Lo: 0x2066, Hi: 0x2069, Stride: 1}}}

// obeyed reports whether a terminal obeys r instead of showing it: control characters
// (C0, DEL and C1), separators of lines and paragraphs, and directions.
func obeyed(r rune) bool {
	return r < ' ' || r >= 0x7f && unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp, directions)
}
