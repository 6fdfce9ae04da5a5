package console

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Kind is a kind of thing that the business keeps, such as orders. The console knows
// things only in this form.
type Kind struct {
	// Path is the last part of the screen's address, and Title its heading. One is what
	// a single thing is called, such as order.
	Path, Title, One string
	// Recent returns some things to begin with, and says in what order they are.
	Recent func(ctx context.Context) (list []Summary, order string, err error)
	// Show returns a thing at a version of its stream, where 0 is the newest one, or a
	// NotFound error. If masked is true, it leaves out personal data.
	Show func(ctx context.Context, id string, version int, masked bool) (Thing, error)
}

// Summary is a thing in a list.
type Summary struct {
	ID, State, More string
	At              time.Time
}

// Thing is what is known about a thing of the business.
type Thing struct {
	// State is the state at the version shown, and Good, Bad and neither its colours.
	State     string
	Good, Bad bool
	// Final is whether nothing more is expected to happen.
	Final bool
	// Facts are the thing at the version shown.
	Facts []Fact
	// Steps are the steps between states that are possible, if it has states.
	Steps []Step
	// History are the versions of its stream, oldest first. Version is the one shown.
	History []Version
	Version int
	// Tables are about it, as of now.
	Tables []Table
}

// Fact is a name with a value.
type Fact struct{ Name, Value string }

// Version is an event of a stream.
type Version struct {
	Type, State string
	Data        json.RawMessage
	MessageID   uuid.UUID
	RecordedAt  time.Time
}

// Table is a table about a thing.
type Table struct {
	Title string
	// Good is a remark that all is well, Warnings are others.
	Good     string
	Warnings []string
	Head     []string
	Rows     [][]Cell
}

// Cell is a cell of a table, which may lead to a thing.
type Cell struct {
	Text string
	// Kind and the text lead to a thing, unless Kind is empty.
	Kind string
}

func (c *Console) registerKinds() {
	for _, k := range c.kinds {
		c.show("/"+k.Path, access.Viewer, func(r *http.Request) (page, error) { return c.listKind(r, k) })
		c.show("/"+k.Path+"/{id...}", access.Viewer, func(r *http.Request) (page, error) { return c.showThing(r, k) })
	}
}

// listKind shows where to begin. With an id it leads to the thing.
func (c *Console) listKind(r *http.Request, k Kind) (page, error) {
	if id := strings.TrimSpace(r.FormValue("id")); id != "" {
		return page{}, redirectError{thingPath(k.Path, id)}
	}

	list, order, err := k.Recent(r.Context())

	// It is not live: an update would empty the field while one types.
	return page{Title: k.Title, Section: "/" + k.Path, Body: kindBody(k, list, order)}, err
}

// thingPath returns the path of a thing.
func thingPath(kind, id string) string { return "/" + kind + "/" + url.PathEscape(id) }

// thingView is a thing with its conversations.
type thingView struct {
	Thing

	Kind          Kind
	ID            string
	Conversations []conversation
	More          int
}

// shownConversations is the number of conversations on the screen of a thing.
const shownConversations = 3

func (c *Console) showThing(r *http.Request, k Kind) (page, error) {
	id := r.PathValue("id")

	version := 0
	if text := r.FormValue("version"); text != "" {
		var err error
		if version, err = strconv.Atoi(text); err != nil || version < 1 {
			return page{}, event.Errorf(event.Invalid, "version: %q is not a version, expected a whole number from 1", text)
		}
	}

	v := thingView{Kind: k, ID: id}

	var err error
	if v.Thing, err = k.Show(r.Context(), id, version, masked(r)); err != nil {
		return page{}, err
	}

	if v.Conversations, err = c.conversationsOf(r, id); err != nil && event.KindOf(err) != event.NotFound {
		return page{}, err
	}

	if v.More = len(v.Conversations) - shownConversations; v.More > 0 {
		v.Conversations = v.Conversations[:shownConversations]
	}

	return page{
		Title: title(k.One) + " " + id, Section: "/" + k.Path, Live: version == 0 && !v.Final, Body: thingBody(v),
	}, nil
}

// chart returns the state diagram up to the version shown.
func (v thingView) chart() stateChart {
	var path []string
	for _, e := range v.History[:v.Version] {
		path = append(path, e.State)
	}

	return newStateChart(v.Steps, path)
}

// shownVersions is the number of versions in the table of events.
const shownVersions = 50

// window returns the versions in the table: the one shown, and those before and after it.
func (v thingView) window() (from, to int) {
	from = max(0, min(v.Version-shownVersions/2, len(v.History)-shownVersions))

	return from, min(len(v.History), from+shownVersions)
}

// at returns the address of the thing at a version.
func (v thingView) at(version int) string {
	if version == len(v.History) {
		return prefix + thingPath(v.Kind.Path, v.ID)
	}

	return prefix + thingPath(v.Kind.Path, v.ID) + "?version=" + strconv.Itoa(version)
}

// class returns the colours of the state.
func (t Thing) class() string {
	switch {
	case t.Good:
		return "good"
	case t.Bad:
		return "bad"
	default:
		return "note"
	}
}
