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

// maxDiff is the maximum number of lines that are compared: the time grows with
// their square.
const maxDiff = 10_000

// Diff returns what an operator changed in the payload of e as a unified diff, empty
// if nothing. JSON is indented and then compared line by line, so that changes of
// white space do not show.
func Diff(e Entry) string {
	from, to := difflib.SplitLines(Pretty(e.Payload)), difflib.SplitLines(Pretty(e.Current()))
	if len(from) > maxDiff || len(to) > maxDiff {
		return fmt.Sprintf("--- original\n+++ edited\n(%d and %d lines are too many to compare)\n", len(from), len(to))
	}

	// Writing to a buffer cannot fail.
	text, _ := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: from, B: to, FromFile: "original", ToFile: "edited", Context: 3})

	return text
}

// Pretty renders a payload for people: JSON indented, other text unchanged, and
// binary data quoted line by line.
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

// Compact reverses Pretty for JSON; other text is returned unchanged.
func Compact(payload []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, payload) != nil {
		return payload
	}

	return b.Bytes()
}
