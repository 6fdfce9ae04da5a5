package console

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/a-h/templ"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
)

func (c *Console) registerReplay() {
	c.show("/failures/replay", access.Operator, c.askToReplay)
	c.act("/failures/replay", access.Operator, c.beginReplay)
	c.part("/failures/replay/next", access.Operator, c.nextReplay)
	c.show("/requests/{id}", access.Viewer, c.request)
}

// A replay requeues the messages of a filter in parts, in order. The page of its outcome
// requests one part after another, so a replay stops when the page closes and continues
// when somebody opens it again, on any replica. The address says what is selected; the
// recorded actions say how far the replay got.
type replay struct {
	filter

	Request uuid.UUID
	// Newest is the newest message when the replay began: messages that fail later are
	// not replayed.
	Newest int64
	// Rate is the number of messages per second, or 0 for no limit.
	Rate                  int64
	OutOfOrder, Overtaken bool
	Why                   string
	// Refused is the number of messages that were left as they are so far, and Over is true
	// once there are no more.
	Refused int64
	Over    bool
}

// Limits of one part of a replay.
const (
	partSeconds = 2
	partAtMost  = 500
	maxRate     = 10_000
)

// allowable returns how many messages a replay leaves because of the order of their key,
// which somebody may decide not to mind.
func allowable(dry failed.Outcome) int { return dry.Refused - dry.RefusedBy[event.Rejected] }

// replayOf reads a replay from the address or the form of a request.
func replayOf(r *http.Request) (p replay, err error) {
	if p.filter, err = filterOf(r); err != nil {
		return p, err
	}

	p.State = string(failed.Stopped)
	p.OutOfOrder, p.Overtaken, p.Why = r.Form.Has("out_of_order"), r.Form.Has("overtaken"), r.Form.Get("why")

	if p.Rate, err = number(r, "rate", 0); err != nil {
		return p, err
	}

	if p.Rate > maxRate {
		return p, event.Errorf(event.Invalid, "rate: is %d, expected at most %d messages per second", p.Rate, maxRate)
	}

	if p.Newest, err = number(r, "newest", 0); err != nil {
		return p, err
	}

	if p.Refused, err = number(r, "refused", 0); err != nil {
		return p, err
	}

	p.Over = r.Form.Has("over")

	if text := r.Form.Get("request"); text != "" {
		if p.Request, err = uuid.Parse(text); err != nil {
			return p, event.Errorf(event.Invalid, "request: is %q, expected a UUID", text)
		}
	}

	return p, nil
}

// fields returns the names and values of a replay, as in its address.
func (p replay) fields() url.Values {
	q := p.filter.fields()
	q.Set("newest", strconv.FormatInt(p.Newest, 10))
	q.Set("request", p.Request.String())

	if p.Rate > 0 {
		q.Set("rate", strconv.FormatInt(p.Rate, 10))
	}

	if p.Why != "" {
		q.Set("why", p.Why)
	}

	if p.Refused > 0 {
		q.Set("refused", strconv.FormatInt(p.Refused, 10))
	}

	for name, set := range map[string]bool{"out_of_order": p.OutOfOrder, "overtaken": p.Overtaken, "over": p.Over} {
		if set {
			q.Set(name, "1")
		}
	}

	return q
}

// address returns the address of the outcome.
func (p replay) address() string {
	return address("/requests/"+p.Request.String(), p.fields())
}

// pace returns the pace of one part.
func (p replay) pace() failed.Pace {
	most := int64(partAtMost)
	if p.Rate > 0 {
		most = min(most, p.Rate*partSeconds)
	}

	return failed.Pace{Limit: int(most), PerSecond: int(p.Rate), OutOfOrder: p.OutOfOrder, Overtaken: p.Overtaken}
}

// left returns what a replay has still to do: the messages after the last one that it
// requeued.
func (c *Console) left(ctx context.Context, p replay) (f failed.Filter, err error) {
	all, err := c.Filter(ctx, p.Selection, p.State)
	if err != nil {
		return f, err
	}

	if f, err = c.ToActOn(ctx, p.Selection, nil, !all.Selective()); err != nil {
		return f, err
	}

	f.Before = p.Newest + 1
	f.After, err = c.Failed.Reached(ctx, p.Request)

	return f, err
}

func (c *Console) askToReplay(r *http.Request) (page, error) {
	f, found, n, err := c.selected(r)
	if err != nil {
		return page{}, err
	}

	dry, err := c.Failed.Requeue(r.Context(), found, actor(r), failed.Pace{Limit: checked, DryRun: true}, c.Router.Check)
	if err != nil {
		return page{}, err
	}

	return page{Title: "Replay in order", Section: "/failures", Body: replayForm(f, n, dry)}, nil
}

func (c *Console) beginReplay(r *http.Request) (page, error) {
	_, found, _, err := c.selected(r)
	if err != nil {
		return page{}, err
	}

	p, err := replayOf(r)
	if err != nil {
		return page{}, err
	}

	newest, err := c.Failed.Summaries(r.Context(), found, 1)
	if err != nil {
		return page{}, err
	}

	if len(newest) == 0 {
		return page{Title: "Replay in order", Section: "/failures", Body: outcomePage(outcome{
			Done: "Nothing has changed: the filter selects no message.", NoneOf: true, Back: "/failures", BackText: "Back to the failures",
		})}, nil
	}

	p.Request, p.Newest = event.NewID(), newest[0].ID

	return page{}, redirectError{p.address()}
}

// nextReplay requeues the next part. After the last one, the browser goes to the address
// of the whole outcome.
func (c *Console) nextReplay(r *http.Request) (templ.Component, error) {
	p, err := replayOf(r)
	if err != nil {
		return nil, err
	}

	f, err := c.left(r.Context(), p)
	if err != nil {
		return nil, err
	}

	by := actor(r)
	by.Request, by.Why = p.Request, p.Why

	for {
		done, next, err := bounded(r, func(ctx context.Context) (failed.Outcome, error) {
			return c.Failed.Requeue(ctx, f, by, p.pace(), c.Router.Check)
		})
		if err != nil {
			return nil, err
		}

		p.Refused += int64(done.Refused)

		if next <= 0 {
			p.Over = true

			return nil, redirectError{p.address()}
		}

		if done.Done > 0 {
			return replayPart(p), nil
		}

		// Parts in which every message is refused leave no trace: pass over them.
		f.After = next
	}
}

// requestView is what became of the messages that a request requeued or retried.
type requestView struct {
	failed.Progress

	Held []operate.Held
	// Left is the number of messages that a replay has still to requeue.
	Left int
}

// Share returns the part of the messages whose outcome is known, in percent.
func (v requestView) Share() int {
	if all := v.Messages + v.Left; all > 0 {
		return 100 * (v.Messages - v.Untried) / all
	}

	return 0
}

func (c *Console) request(r *http.Request) (page, error) {
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return page{}, event.Errorf(event.NotFound, "%q is not the id of a request, expected a UUID", r.PathValue("id"))
	}

	p, err := replayOf(r)
	if err != nil {
		return page{}, err
	}

	var v requestView

	if v.Progress, err = c.Failed.Progress(r.Context(), id); err != nil {
		return page{}, err
	}

	replaying := p.Request == id && !masked(r)
	if replaying && !p.Over {
		f, err := c.left(r.Context(), p)
		if err != nil {
			return page{}, err
		}

		if v.Left, err = c.Failed.CountEntries(r.Context(), f); err != nil {
			return page{}, err
		}
	}

	if v.Messages == 0 && !replaying {
		return page{}, event.Missing("request that retried messages", id.String())
	}

	v.Held, err = c.Held(r.Context(), "", v.Consumers)

	return page{Title: "Outcome", Section: "/failures", Live: true, Body: requestBody(v), Tail: afterwards(p, replaying, v.Left)}, err
}

// afterwards returns what the page shows below an outcome: the rest of the replay, what it
// has left, or a way back.
func afterwards(p replay, replaying bool, left int) templ.Component {
	switch {
	case replaying && p.Over:
		return replayOver(p)
	case replaying && left > 0:
		return replayPart(p)
	default:
		return backToFailures()
	}
}

// retried reports whether one can ask for the outcome of an action.
func retried(a activity.Action) bool {
	return a.RequestID != nil && (a.Action == activity.Requeued || a.Action == activity.Retried)
}

func requestAt(id uuid.UUID) templ.SafeURL { return templ.SafeURL(prefix + "/requests/" + id.String()) }

// progressText says in words how far a request got.
func progressText(v requestView) string {
	text := strconv.Itoa(v.Messages-v.Untried) + " of " + count(v.Messages+v.Left, "message has", "messages have") + " been tried"
	if v.Untried == 0 && v.Left == 0 {
		text = "All " + count(v.Messages, "message has", "messages have") + " been tried"
	}

	return text + "."
}

// backAt returns the address of the messages that came back with a cause.
func backAt(b failed.CameBack) templ.SafeURL {
	return templ.SafeURL(filter{State: string(b.State), Selection: operate.Selection{Group: b.Group}}.at("/failures"))
}
