package console

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// conversationsPath is the path of the screen.
const conversationsPath = "/conversations"

func (c *Console) registerConversations() { c.show(conversationsPath, access.Viewer, c.conversations) }

// conversations shows the conversations of a message, a correlation ID or a key.
func (c *Console) conversations(r *http.Request) (page, error) {
	id := strings.TrimSpace(r.FormValue("id"))
	p := page{Title: "Conversations", Section: conversationsPath}

	if id == "" {
		p.Body = conversationSearch(id, "", c.Retention)

		return p, nil
	}

	list, err := c.conversationsOf(r, id)

	switch {
	case event.KindOf(err) == event.NotFound:
		p.Body = conversationSearch(id, err.Error(), c.Retention)

		return p, nil
	case err != nil:
		return p, err
	}

	p.Live = slices.ContainsFunc(list, func(v conversation) bool { return v.Open > 0 })
	p.Body = conversationBody(id, list, p.Live)

	return p, nil
}

// conversationsOf returns the conversations that an id belongs to, the newest first.
func (c *Console) conversationsOf(r *http.Request, id string) ([]conversation, error) {
	roots, err := c.Trace(r.Context(), id)
	if err != nil {
		return nil, err
	}

	if masked(r) {
		operate.MaskTrees(roots)
	}

	var list []conversation
	for _, root := range slices.Backward(roots) {
		list = append(list, newConversation(root, time.Now()))
	}

	return list, nil
}

// conversation is a message with everything that it caused, on a common axis of time.
type conversation struct {
	Root  *trace.Message
	Hops  []hop
	Start time.Time
	Took  time.Duration
	// Open is the number of messages that have not reached their last state.
	Open int
}

// hop is a message of a conversation.
type hop struct {
	*trace.Message

	// Depth is the number of messages between it and the root. Above is the index of the
	// message that caused it, or -1.
	Depth, Above int
	// From is when the message was created, as far as its id tells.
	From time.Time
	Took time.Duration
	// Known is whether From is known.
	Known bool
	// X and Width are its place on the axis, in thousandths.
	X, Width int
}

// Open reports whether the message is on its way or needs somebody.
func (h hop) Open() bool { return h.State != trace.Applied && h.State != trace.Published }

// axis is the length of the axis of time.
const axis = 1000

// minBar is the shortest bar on the axis.
const minBar = 6

func newConversation(root *trace.Message, now time.Time) conversation {
	v := conversation{Root: root, Hops: hopsOf(nil, root, 0, -1, now)}

	v.Start = v.Hops[0].From
	end := v.Start

	for _, h := range v.Hops {
		if h.From.Before(v.Start) {
			v.Start = h.From
		}

		if until := h.From.Add(h.Took); until.After(end) {
			end = until
		}

		if h.Open() {
			v.Open++
		}
	}

	v.Took = end.Sub(v.Start)

	for i, h := range v.Hops {
		x, width := 0, axis

		if v.Took > 0 {
			x = int(axis * h.From.Sub(v.Start) / v.Took)
			width = int(axis * h.Took / v.Took)
		}

		width = max(width, minBar)
		v.Hops[i].X, v.Hops[i].Width = min(x, axis-width), width
	}

	return v
}

// hopsOf adds a message and those that it caused, in order.
func hopsOf(hops []hop, m *trace.Message, depth, above int, now time.Time) []hop {
	h := hop{Message: m, Depth: depth, Above: above}

	until := m.At
	if h.Open() {
		until = now
	}

	if h.From, h.Known = m.Created(); !h.Known || h.From.After(until) {
		h.From = m.At // a foreign id, or the clock of another machine
	}

	h.Took = max(0, until.Sub(h.From))
	hops = append(hops, h)
	above = len(hops) - 1

	for _, next := range m.Caused {
		hops = hopsOf(hops, next, depth+1, above, now)
	}

	return hops
}

// lapse formats a duration for people.
func lapse(d time.Duration) string {
	switch {
	case d == 0:
		return "0 ms"
	case d < time.Millisecond:
		return "under 1 ms"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
}

// stateOf returns the colours of a message's state.
func stateOf(s trace.State) string {
	switch s {
	case trace.Applied, trace.Published:
		return "good"
	case trace.Stopped:
		return "bad"
	default:
		return "warn"
	}
}

// receiver is who gets a message: its consumer, or nobody here.
func (h hop) receiver() string {
	switch {
	case h.Consumer != "":
		return h.Consumer
	case h.State == trace.Published:
		return "outside"
	default:
		return h.Topic
	}
}

// indent returns the class that indents a message in the tree.
func (h hop) indent() string { return fmt.Sprintf("depth-%d", min(h.Depth, maxIndent)) }

// maxIndent is the deepest indentation in the style sheet.
const maxIndent = 6

// sequence is a diagram of who sends what to whom, from top to bottom.
type sequence struct {
	Width, Height int
	Lanes         []seqLane
	Arrows        []arrow
	// More is the number of messages that are left out.
	More int
}

type seqLane struct {
	Name string
	X    int
}

type arrow struct {
	From, To, Y int
	Label, Time string
	Class       string
}

// Measures of a sequence diagram.
const (
	laneWidth = 176
	seqTop    = 56
	arrowStep = 44
	maxArrows = 40
)

// sequence draws a conversation.
func (v conversation) sequence() sequence {
	s := sequence{Lanes: []seqLane{{Name: "producer", X: laneWidth / 2}}}

	laneOf := func(name string) int {
		for _, l := range s.Lanes {
			if l.Name == name {
				return l.X
			}
		}

		x := len(s.Lanes)*laneWidth + laneWidth/2
		s.Lanes = append(s.Lanes, seqLane{Name: name, X: x})

		return x
	}

	order := make([]int, len(v.Hops))
	for i := range order {
		order[i] = i
	}

	slices.SortStableFunc(order, func(a, b int) int { return v.Hops[a].From.Compare(v.Hops[b].From) })

	for n, i := range order {
		if n == maxArrows {
			s.More = len(order) - n

			break
		}

		h, from := v.Hops[i], s.Lanes[0].X
		if h.Above >= 0 {
			from = laneOf(v.Hops[h.Above].receiver())
		}

		s.Arrows = append(s.Arrows, arrow{
			From: from, To: laneOf(h.receiver()), Y: seqTop + (n+1)*arrowStep,
			Label: h.Topic, Time: "+" + lapse(h.From.Sub(v.Start)) + ", " + string(h.State), Class: stateOf(h.State),
		})
	}

	s.Width = len(s.Lanes) * laneWidth
	s.Height = seqTop + (len(s.Arrows)+1)*arrowStep

	return s
}

// describe says in words what a sequence diagram shows.
func (v conversation) describe() string {
	var text strings.Builder

	for _, h := range v.Hops {
		from := "A producer"
		if h.Above >= 0 {
			from = v.Hops[h.Above].receiver()
		}

		fmt.Fprintf(&text, "%s sent %s to %s, which is %s after %s. ", from, h.Topic, h.receiver(), h.State, lapse(h.Took))
	}

	return strings.TrimSpace(text.String())
}

// middle is where the label of an arrow is centred.
func (a arrow) middle() int {
	// Labels of long arrows stay beside the sender's line, where there are none of others.
	if a.To > a.From {
		return a.From + laneWidth/2
	}

	return a.From - laneWidth/2
}

// head returns the path of an arrow's head.
func (a arrow) head() string {
	if a.To > a.From {
		return fmt.Sprintf("M%d %d l-9 -5 v10 z", a.To, a.Y)
	}

	return fmt.Sprintf("M%d %d l9 -5 v10 z", a.To, a.Y)
}

// clipped shortens a text that a drawing has room for only in part.
func clipped(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}

	return string(runes[:most-1]) + "…"
}

// entryPath returns the path of a failed message.
func entryPath(id int64) string { return fmt.Sprintf("/failures/%d", id) }
