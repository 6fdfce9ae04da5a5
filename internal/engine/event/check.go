package event

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxID is the maximum length of an ID in a payload, in bytes.
const MaxID = 200

// CheckID validates the ID in the field at path.
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

// Printable reports whether s is UTF-8 without control characters.
func Printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}
