package event

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text in a payload is one of three kinds: an ID, a name or free text. Each kind has a
// function that validates the field at a path. The function's error names the path.

// MaxID is the maximum length of an ID in a payload, in bytes: IDs are keys, and
// indexes hold them.
const MaxID = 200

// CheckID validates a required ID. IDs are compared byte by byte, are typed by people
// and occur in URLs, logs and keys, so an ID must be what it looks like. It consists of
// spaces (U+0020) and printable characters: the letters, marks, digits, punctuation and
// symbols of Go's version of Unicode (unicode.IsPrint). Invisible characters, such as
// joiners and other spaces, are refused.
func CheckID(path, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%s: is missing, expected 1 to %d bytes of text", path, MaxID)
	case len(id) > MaxID:
		return fmt.Errorf("%s: has %d bytes, expected at most %d", path, len(id), MaxID)
	case !Printable(id):
		return fmt.Errorf("%s: is %+q, expected printable characters", path, id)
	}

	return nil
}

// CheckOptionalID validates an ID that may be missing.
func CheckOptionalID(path, id string) error {
	if id == "" {
		return nil
	}

	return CheckID(path, id)
}

// CheckName validates a required name of at most the given number of characters. A name
// is one line of any characters in any script, including spaces such as U+3000 and
// U+00A0, joiners, and emoji newer than Go's version of Unicode. Control characters and
// line separators are refused, and so is a name without a visible character. The error
// does not repeat the name, because errors are logged.
func CheckName(path, name string, most int) error {
	switch {
	case blank(name):
		return fmt.Errorf("%s: is missing, expected 1 to %d characters of text", path, most)
	case strings.ContainsFunc(name, breaksLine):
		return fmt.Errorf("%s: contains the character %U, expected one line without control characters", path, first(name, breaksLine))
	}

	return CheckText(path, name, most)
}

// CheckText validates free text of at most the given number of characters. The text may
// be empty, and may contain any character except U+0000, which Postgres cannot store.
func CheckText(path, s string, most int) error {
	if n := utf8.RuneCountInString(s); n > most {
		return fmt.Errorf("%s: has %d characters, expected at most %d", path, n, most)
	}

	if err := Storable(s); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}

	return nil
}

// Printable reports whether s is UTF-8 and consists of characters that an ID may have.
func Printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}

// Storable returns an error if Postgres cannot store s as text: it contains U+0000 or
// is not UTF-8.
func Storable(s string) error {
	switch {
	case strings.IndexByte(s, 0) >= 0:
		return errors.New("contains the character U+0000, which cannot be stored")
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	}

	return nil
}

// Text returns s, quoted if Postgres cannot store it as text. It is for text that must
// be stored as it arrived, such as the key of a failed message.
func Text(s string) string {
	if Storable(s) == nil {
		return s
	}

	return fmt.Sprintf("%+q", s)
}

// Shorten returns at most the first most bytes of s. It does not cut a character in two.
func Shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}

	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}

	return s[:most]
}

// Plural returns n followed by a word: by one if n is 1, and by many otherwise.
func Plural[N int | int64](n N, one, many string) string {
	if n == 1 {
		many = one
	}

	return fmt.Sprintf("%d %s", n, many)
}

// shortened returns the beginning of a value for an error.
func shortened(s string) string { return Shorten(s, MaxID) }

// emptyBraille is the Braille symbol without dots.
const emptyBraille = '\u2800'

// blank reports whether s has no visible character.
func blank(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != emptyBraille && !unicode.IsSpace(r) && !unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
	})
}

// first returns the first character of s for which is holds.
func first(s string, is func(rune) bool) rune {
	r, _ := utf8.DecodeRuneInString(s[strings.IndexFunc(s, is):])

	return r
}

// breaksLine reports whether r is a control character, or a line or paragraph
// separator.
func breaksLine(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) }
