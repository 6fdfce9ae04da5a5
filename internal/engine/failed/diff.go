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

// maxDiff is the maximum number of lines to compare: the time grows quadratically.
const maxDiff = 10_000

// Diff returns an operator's changes to the payload of e as a unified diff, or "" if
// there are none. JSON is indented before comparing line by line, so that whitespace
// changes do not show.
func Diff(e Entry) string { return diff("original", e.Payload, "edited", e.Current()) }

// DiffTo is Diff from the current payload of e to another one.
func DiffTo(e Entry, payload []byte) string { return diff("now", e.Current(), "edited", payload) }

func diff(fromName string, before []byte, toName string, after []byte) string {
	from, to := difflib.SplitLines(Pretty(before)), difflib.SplitLines(Pretty(after))
	if len(from) > maxDiff || len(to) > maxDiff {
		return fmt.Sprintf("--- %s\n+++ %s\n(%d and %d lines are too many to compare)\n", fromName, toName, len(from), len(to))
	}

	// Writing to a buffer cannot fail.
	text, _ := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: from, B: to, FromFile: fromName, ToFile: toName, Context: 3})

	return text
}

// Pretty formats a payload for people: JSON is indented, binary data is quoted line
// by line, and other text is unchanged.
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

// Compact reverses Pretty for JSON. It returns other text unchanged.
func Compact(payload []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, payload) != nil {
		return payload
	}

	return b.Bytes()
}
