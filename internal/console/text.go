package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/a-h/templ"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/terminal"
)

// plain escapes the characters of a text that nobody would see, or that would show it in
// another order.
func plain(text string) string {
	var b strings.Builder

	_, _ = io.WriteString(terminal.NewWriter(&b), text) // cannot fail

	return b.String()
}

// short returns the beginning of a text, on one line.
func short(text string, most int) string {
	first, _, cut := strings.Cut(text, "\n")
	if len(first) > most {
		first, cut = strings.ToValidUTF8(first[:most], ""), true
	}

	if cut {
		first += " ..."
	}

	return terminal.Line(first)
}

// maxNodes is the maximum number of values in a tree, and maxShown that of the bytes of a
// text: a page stays below 100 KB.
const (
	maxNodes = 400
	maxShown = 20_000
)

// node is a value in JSON. Objects and arrays have children.
type node struct {
	// Name is the name of a member or the index of an element, as JSON.
	Name string
	// Class is the kind of a value: string, value (a number, true, false or null), object
	// or array.
	Class string
	// Text is the value exactly as in the payload, unless it has children.
	Text     string
	Children []node
}

// errTooMany reports a payload with more than maxNodes values.
var errTooMany = errors.New("too many values")

// treeOf returns a payload as a tree with its members in order and its numbers as they
// are written, or an error if it is not JSON or too large.
func treeOf(payload []byte) (node, error) {
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()

	left := maxNodes

	root, err := readNode(decoder, &left)
	if err != nil {
		return root, err
	}

	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return root, errors.New("more than one value")
	}

	return root, nil
}

func readNode(decoder *json.Decoder, left *int) (n node, err error) {
	if *left--; *left < 0 {
		return n, errTooMany
	}

	token, err := decoder.Token()
	if err != nil {
		return n, err
	}

	switch token := token.(type) {
	case json.Delim:
		n.Class = "array"
		if token == '{' {
			n.Class = "object"
		}

		for decoder.More() {
			name := strconv.Itoa(len(n.Children))

			if n.Class == "object" {
				key, err := decoder.Token()
				if err != nil {
					return n, err
				}

				name = quoted(key)
			}

			child, err := readNode(decoder, left)
			if err != nil {
				return n, err
			}

			child.Name = name
			n.Children = append(n.Children, child)
		}

		_, err = decoder.Token()

		return n, err
	case string:
		return node{Class: "string", Text: quoted(token)}, nil
	default:
		return node{Class: "value", Text: quoted(token)}, nil
	}
}

// quoted returns a value as JSON, on one line.
func quoted(value any) string {
	var b strings.Builder

	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(value) // cannot fail

	return terminal.Line(strings.TrimSuffix(b.String(), "\n"))
}

// diffOf shows a unified diff.
func diffOf(diff string) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		var b strings.Builder

		b.WriteString(`<pre class="diff wrap" tabindex="0" role="group" aria-label="Changes">`)

		for line := range strings.Lines(diff) {
			text := templ.EscapeString(plain(line))

			switch {
			case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"), strings.HasPrefix(line, "@@"):
			case strings.HasPrefix(line, "+"):
				b.WriteString("<ins>" + text + "</ins>")
			case strings.HasPrefix(line, "-"):
				b.WriteString("<del>" + text + "</del>")
			default:
				b.WriteString(text)
			}
		}

		b.WriteString("</pre>")

		_, err := io.WriteString(w, b.String())

		return err
	})
}

// shownPayload is a payload for people.
type shownPayload struct {
	Tree *node
	// Text is the beginning of the payload, indented if it is JSON.
	Text string
	// Cut is true if Text is incomplete.
	Cut bool
}

func shownOf(payload []byte) (p shownPayload) {
	if root, err := treeOf(payload); err == nil {
		p.Tree = &root
	}

	p.Text = failed.Pretty(payload)
	if len(p.Text) > maxShown {
		p.Text, p.Cut = strings.ToValidUTF8(p.Text[:maxShown], ""), true
	}

	return p
}

// typed returns the payload that somebody typed into the editor of an entry. Browsers send
// every line break as CR LF. JSON is stored without the indentation of the editor.
func typed(text string) []byte { return failed.Compact([]byte(strings.ReplaceAll(text, "\r\n", "\n"))) }

// editable reports whether a payload can be edited in a browser without changing what
// nobody meant to change.
func editable(payload []byte) bool {
	return utf8.Valid(payload) && len(payload) <= maxShown && (json.Valid(payload) || !bytes.Contains(payload, []byte("\r")))
}

// brackets returns the brackets of an object or array.
func brackets(n node, inside string) string {
	if n.Class == "object" {
		return "{" + inside + "}"
	}

	return "[" + inside + "]"
}

// count formats a number with its noun.
func count(n int, one, many string) string { return event.Plural(n, one, many) }
