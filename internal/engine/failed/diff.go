package failed

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pmezard/go-difflib/difflib"
)

// maxDiff is how many lines of a payload are compared, at most: the time that
// takes grows with their square.
const maxDiff = 10_000

// Diff returns what an operator changed in the payload of e as a unified diff,
// empty if nothing. JSON is compared by its lines when indented, so that a
// change of spaces shows nothing.
func Diff(e Entry) string { return DiffOf(e.Payload, e.Current()) }

// DiffOf is Diff of two payloads.
func DiffOf(original, edited []byte) string {
	from, to := difflib.SplitLines(Pretty(original)), difflib.SplitLines(Pretty(edited))
	if len(from) > maxDiff || len(to) > maxDiff {
		return fmt.Sprintf("--- original\n+++ edited\n(%d and %d lines are too many to compare)\n", len(from), len(to))
	}

	// Writing to a buffer cannot fail.
	text, _ := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: from, B: to, FromFile: "original", ToFile: "edited", Context: 3})

	return text
}

// Pretty renders a payload for people: JSON indented, other text as it is, and
// what is no text quoted, line by line.
func Pretty(payload []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, payload, "", "  ") == nil {
		return b.String()
	}

	if utf8.Valid(payload) {
		return string(payload)
	}

	var quoted []string
	for line := range bytes.Lines(payload) {
		quoted = append(quoted, strconv.QuoteToASCII(string(line)))
	}

	return strings.Join(quoted, "\n")
}

// Compact is the reverse of Pretty for JSON; other text stays as it is.
func Compact(payload []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, payload) != nil {
		return payload
	}

	return b.Bytes()
}
