package event

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/terminal"
)

// Kind classifies why a request cannot be fulfilled. Package operate maps kinds to
// exit codes and HTTP statuses.
type Kind string

// Kinds of errors.
const (
	NotFound Kind = "not-found" // the named thing does not exist
	Unknown  Kind = "unknown"   // a name outside a fixed set, probably a typo
	Conflict Kind = "conflict"  // the current state does not allow it
	Changed  Kind = "changed"   // changed since the caller read it
	Invalid  Kind = "invalid"   // the request is contradictory or incomplete
	Rejected Kind = "rejected"  // a consumer would reject the payload

	Overtaken Kind = "overtaken"  // later messages with the key have been applied
	KeyChange Kind = "key-change" // an edit changes the key of a message
)

// Error reports a request that cannot be fulfilled, as opposed to one that failed.
type Error struct {
	Kind Kind
	// What is the type of the requested thing, and Name is its name.
	What, Name string
	// Known lists the valid names, if they form a fixed set.
	Known []string
	// Message replaces the standard text unless empty.
	Message string
	// Detail is the data behind the message, or nil.
	Detail any
}

// Missing returns a NotFound error, such as "there is no order order_123".
func Missing(what, name string) *Error { return &Error{Kind: NotFound, What: what, Name: name} }

// UnknownName returns an Unknown error that names the nearest known names.
func UnknownName(what, name string, known []string) *Error {
	return &Error{Kind: Unknown, What: what, Name: name, Known: known}
}

// KnownName returns an Unknown error unless name is empty or one of known.
func KnownName[N ~string](what string, name N, known []N) error {
	if name == "" || slices.Contains(known, name) {
		return nil
	}

	names := make([]string, len(known))
	for i, n := range known {
		names[i] = string(n)
	}

	return UnknownName(what, string(name), names)
}

// Errorf returns an error of the given kind with a custom message.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// KindOf returns the kind of err, or "" if it has none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}

	return ""
}

func (e *Error) Error() string {
	if e.Message != "" {
		return e.Message
	}

	text := fmt.Sprintf("there is no %s %s", e.What, terminal.Line(e.Name))

	if near := Nearest(e.Name, e.Known); len(near) > 0 {
		return text + "; did you mean " + strings.Join(near, " or ") + "?"
	}

	if len(e.Known) > 0 {
		text += ", expected one of " + strings.Join(e.Known, ", ")
	}

	return text
}

// maxTypos is the maximum edit distance of a suggested name.
const maxTypos = 2

// Nearest returns the known names with the smallest edit distance to name, ignoring
// case, or none if none is close.
func Nearest(name string, known []string) (near []string) {
	best := min(maxTypos, len(name)/2)

	for _, candidate := range known {
		switch d := distance(strings.ToLower(name), strings.ToLower(candidate)); {
		case d < best:
			best, near = d, []string{candidate}
		case d == best:
			near = append(near, candidate)
		}
	}

	return near
}

// distance returns the number of bytes to insert, delete, replace or swap with the
// next one to get from a to b (optimal string alignment).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)

	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i

		for j := 1; j <= len(b); j++ {
			if i == 0 {
				rows[i][j] = j

				continue
			}

			replaced := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}

			rows[i][j] = min(replaced, rows[i-1][j]+1, rows[i][j-1]+1)

			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}

	return rows[len(a)][len(b)]
}
