package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/a-h/templ"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

func (c *Console) registerFailures() {
	c.show("/failures", access.Viewer, c.failures)
	c.show("/failures/edit", access.Operator, c.askToEdit)
	c.show("/failures/discard", access.Operator, c.askToDiscard)
	c.act("/failures/note", access.Operator, c.note)
	c.act("/failures/edit", access.Operator, c.editMany)
	c.act("/failures/discard", access.Operator, c.discardMany)
}

// filter is a selection of failed messages as it stands in the address of a page.
type filter struct {
	operate.Selection

	State string
	// Older is the cursor of a page of entries.
	Older int64
}

// filterOf reads a filter from the address and the form of a request.
func filterOf(r *http.Request) (filter, error) {
	f := filter{State: cmp.Or(r.Form.Get("state"), string(failed.Stopped)), Selection: operate.Selection{
		Group: r.Form.Get("group"), Topic: r.Form.Get("topic"), Consumer: r.Form.Get("consumer"), Reason: r.Form.Get("reason"),
		Key: r.Form.Get("key"), MessageID: r.Form.Get("message"), Text: r.Form.Get("text"),
	}}

	for name, t := range map[string]*event.Time{"since": &f.Since, "until": &f.Until} {
		if text := r.Form.Get(name); text != "" {
			if err := t.UnmarshalText([]byte(text)); err != nil {
				return f, event.Errorf(event.Invalid, "%s: %v", name, err)
			}
		}
	}

	older, err := number(r, "older", 0)
	f.Older = older

	return f, err
}

// number reads a whole number, not below 0, from a form.
func number(r *http.Request, name string, missing int64) (int64, error) {
	text := r.Form.Get(name)
	if text == "" {
		return missing, nil
	}

	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, event.Errorf(event.Invalid, "%s: is %q, expected a whole number", name, text)
	}

	return n, nil
}

// fields returns the names and values of a filter, as in its address.
func (f filter) fields() url.Values {
	q := url.Values{}

	for name, value := range map[string]string{
		"group": f.Group, "topic": f.Topic, "consumer": f.Consumer, "reason": f.Reason, "key": f.Key, "message": f.MessageID, "text": f.Text,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}

	if f.State != string(failed.Stopped) {
		q.Set("state", f.State)
	}

	for name, t := range map[string]event.Time{"since": f.Since, "until": f.Until} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339))
		}
	}

	return q
}

// at returns an address with this filter, and more names and values.
func (f filter) at(path string, more ...string) string {
	q := f.fields()
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}

	return address(prefix+path, q)
}

// inGroup returns the address of a group within this filter.
func (f filter) inGroup(id string) string { return f.at("/failures", "group", id) }

// moment returns a bound of the filter as a form has it.
func fieldTime(t event.Time) string {
	if t.IsZero() {
		return ""
	}

	return t.UTC().Format(time.RFC3339)
}

// Periods of a trend.
const (
	trendPeriod = time.Hour
	trendLength = 24
)

// Sizes of lists on a page.
const (
	groupsShown  = 30
	entriesShown = 25
)

// failuresView is what a filter selects.
type failuresView struct {
	filter

	Groups []groupView
	// Total is the number of entries, MoreGroups that of groups that are not shown; both
	// are at most postgres.MaxCount + 1.
	Total, MoreGroups int
	Entries           []failed.Entry
	// Next is the cursor of the next page, or 0.
	Next     int64
	Operator bool
	// Release is that of this process.
	Release string
}

type groupView struct {
	failed.Group

	Trend []int
}

func (c *Console) failures(r *http.Request) (page, error) {
	f, err := filterOf(r)
	if err != nil {
		return page{}, err
	}

	v := failuresView{filter: f, Operator: !masked(r), Release: c.Failed.Release()}
	if err := c.readFailures(r.Context(), &v, masked(r)); err != nil {
		return page{}, err
	}

	p := page{Title: "Failures", Section: "/failures", Live: true, Head: filterForm(f, c.Topics(), c.ConsumerNames()), Body: failuresBody(v)}
	if v.Operator {
		p.Tail = actions(v)
	}

	return p, nil
}

// actions returns what an operator can do with what a filter selects.
func actions(v failuresView) templ.Component {
	var forms []templ.Component

	if v.State == string(failed.Stopped) {
		forms = append(forms, manyForm(v.filter))
	}

	if v.Group != "" && len(v.Groups) == 1 {
		forms = append(forms, noteForm(v.filter, v.Groups[0].Note))
	}

	return templ.Join(forms...)
}

func (c *Console) readFailures(ctx context.Context, v *failuresView, hidden bool) error {
	f, err := c.Filter(ctx, v.Selection, v.State)
	if err != nil {
		return err
	}

	f.Masked = hidden

	groups, err := c.Failed.Groups(ctx, f, failed.GroupsAfter{}, groupsShown+1)
	if err != nil {
		return err
	}

	if len(groups) > groupsShown {
		all, err := c.Failed.CountGroups(ctx, f)
		if err != nil {
			return err
		}

		groups, v.MoreGroups = groups[:groupsShown], all-groupsShown
	}

	trend, err := c.Failed.Trend(ctx, f, postgres.Column(groups, func(g failed.Group) string { return g.ID }), trendPeriod, trendLength)
	if err != nil {
		return err
	}

	for _, g := range groups {
		if hidden {
			g = c.MaskGroup(g)
		}

		v.Groups = append(v.Groups, groupView{g, trend[g.ID]})
	}

	if v.Total, err = c.Failed.CountEntries(ctx, f); err != nil {
		return err
	}

	f.Before = v.Older

	if v.Entries, err = c.Failed.Summaries(ctx, f, entriesShown+1); err != nil {
		return err
	}

	if len(v.Entries) > entriesShown {
		v.Entries = v.Entries[:entriesShown]
		v.Next = v.Entries[entriesShown-1].ID
	}

	for i := range v.Entries {
		if hidden {
			v.Entries[i] = c.MaskEntry(v.Entries[i])
		}
	}

	return nil
}

// note stores a note on a group and shows the group again.
func (c *Console) note(r *http.Request) (page, error) {
	f, err := filterOf(r)
	if err != nil {
		return page{}, err
	}

	by := actor(r)
	by.Why = strings.TrimSpace(r.PostFormValue("note"))

	if err := c.Note(r.Context(), f.Group, by); err != nil {
		return page{}, err
	}

	return page{}, redirectError{strings.TrimPrefix(f.at("/failures"), prefix)}
}

// selected returns the stopped messages that a filter selects, to act on, and their
// number. A filter without criteria selects all of them: the page says so.
func (c *Console) selected(r *http.Request) (f filter, found failed.Filter, n int, err error) {
	if f, err = filterOf(r); err != nil {
		return f, found, 0, err
	}

	f.State = string(failed.Stopped)

	all, err := c.Filter(r.Context(), f.Selection, f.State)
	if err != nil {
		return f, found, 0, err
	}

	if found, err = c.ToActOn(r.Context(), f.Selection, nil, !all.Selective()); err != nil {
		return f, found, 0, err
	}

	if found.After, err = number(r, "after", 0); err != nil {
		return f, found, 0, err
	}

	n, err = c.Failed.CountEntries(r.Context(), found)

	return f, found, n, err
}

// whole says what a filter selects, before somebody acts on it.
func whole(f filter, n int) string {
	if len(f.fields()) == 0 {
		return "There is no filter: this is every stopped message, " + some(n) + "."
	}

	return "The filter selects " + some(n) + "."
}

// some formats a number of messages, which are counted up to a limit.
func some(n int) string {
	if n > postgres.MaxCount {
		return "more than " + count(postgres.MaxCount, "message", "messages")
	}

	return count(n, "message", "messages")
}

// checked is the most messages that a dry run examines.
const checked = 500

func (c *Console) askToEdit(r *http.Request) (page, error) {
	f, _, n, err := c.selected(r)

	return page{Title: "Edit many", Section: "/failures", Body: editForm(f, n, editing{Patch: "{\n  \n}"})}, err
}

// editing is an edit of many messages: what somebody typed, and what it would do.
type editing struct {
	Patch, Why string
	Dry        *failed.Outcome
	Mistake    string
}

func (c *Console) editMany(r *http.Request) (page, error) {
	f, found, n, err := c.selected(r)
	if err != nil {
		return page{}, err
	}

	e := editing{Patch: r.PostFormValue("patch"), Why: r.PostFormValue("why")}
	form := func(status int) (page, error) {
		return page{Title: "Edit many", Section: "/failures", Status: status, Body: editForm(f, n, e)}, nil
	}

	dry := !r.PostForm.Has("apply")
	pace := failed.Pace{DryRun: dry}

	if dry {
		pace.Limit = checked
	}

	done, next, err := bounded(r, func(ctx context.Context) (failed.Outcome, error) {
		return c.Failed.Patch(ctx, found, []byte(e.Patch), actor(r), pace, c.Router.Check)
	})

	switch {
	case event.KindOf(err) == event.Invalid:
		e.Mistake = err.Error()

		return form(http.StatusUnprocessableEntity)
	case err != nil:
		return page{}, err
	case dry:
		e.Dry = &done

		return form(http.StatusOK)
	}

	return c.didMany(f, "edited", done, next, []string{"patch", e.Patch, "why", e.Why, "apply", "1"}, f.at("/failures/replay")), nil
}

func (c *Console) askToDiscard(r *http.Request) (page, error) {
	f, _, n, err := c.selected(r)

	return page{Title: "Discard many", Section: "/failures", Body: discardForm(f, n, "")}, err
}

func (c *Console) discardMany(r *http.Request) (page, error) {
	f, found, n, err := c.selected(r)
	if err != nil {
		return page{}, err
	}

	done, next, err := bounded(r, func(ctx context.Context) (failed.Outcome, error) {
		return c.Failed.Discard(ctx, found, actor(r), failed.Pace{})
	})
	if errors.Is(err, failed.ErrNoReason) {
		return page{
			Title: "Discard many", Section: "/failures", Status: http.StatusUnprocessableEntity, Body: discardForm(f, n, err.Error()),
		}, nil
	}

	if err != nil {
		return page{}, err
	}

	return c.didMany(f, "discarded", done, next, []string{"why", r.PostFormValue("why")}, ""), nil
}

// manyTimeout bounds one part of an action on many messages.
const manyTimeout = 15 * time.Second

// bounded runs an action on many messages for a limited time. next is where to continue,
// or 0 if it is complete.
func bounded(r *http.Request, act func(context.Context) (failed.Outcome, error)) (done failed.Outcome, next int64, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), manyTimeout)
	defer cancel()

	done, err = act(ctx)
	if errors.Is(err, context.DeadlineExceeded) && r.Context().Err() == nil && done.Last > 0 {
		err = nil
	}

	if done.Done+done.Refused+done.Changed+done.Unchanged < done.Selected {
		next = done.Last
	}

	return done, next, err
}

// didMany says what an action on many messages did. fields are those of the form that
// continues it, and replay is where the messages can be replayed, or "".
func (c *Console) didMany(f filter, what string, done failed.Outcome, next int64, fields []string, replay string) page {
	return page{Title: title(what), Section: "/failures", Body: manyOutcome(f, what, done, next, fields, replay)}
}

// fieldsOf returns a filter as hidden fields, sorted by name, with more names and values.
func fieldsOf(f filter, more ...string) templ.Component {
	q := f.fields()
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}

	return hiddenFields(q)
}

func sortedNames(q url.Values) []string { return slices.Sorted(maps.Keys(q)) }

func contains(list []string, value string) bool { return slices.Contains(list, value) }

func reasons() []string {
	return postgres.Column(event.Reasons, func(r event.Reason) string { return string(r) })
}

// entryAt returns the address of a failed message.
func entryAt(id int64) templ.SafeURL {
	return templ.SafeURL(prefix + "/failures/" + strconv.FormatInt(id, 10))
}

// entryWord returns the state of a message: how it was resolved, if it was.
func entryWord(e failed.Entry) string { return cmp.Or(string(e.Resolution), string(e.State)) }

func entryClass(e failed.Entry) string {
	switch {
	case e.State == failed.Stopped:
		return "bad"
	case e.State == failed.Waiting:
		return "warn"
	case e.Resolution == failed.Applied:
		return "good"
	default:
		return ""
	}
}

// releases returns the releases in which the failures of a group occurred.
func releases(g failed.Group) string {
	if g.FirstRelease == g.LastRelease {
		return g.FirstRelease
	}

	return g.FirstRelease + " to " + g.LastRelease
}

// advice says what somebody can do about stopped messages with a reason, which last failed
// in a release.
func advice(reason event.Reason, release, running string) string {
	switch reason {
	case event.ReasonTooLarge, event.ReasonMalformed, event.ReasonInvalid:
		return "The consumer rejects the payload, and would reject it again. Edit it and requeue it, or ask the sender for another message and discard this one."
	case event.ReasonRefused:
		return "A rule of the business forbids it as things are. Requeue it once they have changed, edit it, or discard it."
	case event.ReasonConflict:
		return "Another payload was applied under the same id. Compare them, then discard this one, or ask the sender to send it under an id of its own."
	case event.ReasonForgotten:
		return "It is so old that it may have been applied already, without a trace. Check that before you requeue it; otherwise discard it."
	case event.ReasonPanicked:
		if release != running {
			return "The consumer has a bug: it panicked in release " + release + ". Release " + running + " is running now. If that has the fix, replay what failed."
		}

		return "The consumer has a bug: it panicked in release " + release + ", which is still running, and would panic again. Deploy a release with a fix, then replay what failed; or edit the payload."
	case event.ReasonFailed, event.ReasonPending, event.ReasonEarly:
		return "The consumer gave up after several attempts. Once what the error reports is fixed, replay what failed."
	default:
		return ""
	}
}

// waitFor is the verb for a number of messages.
func waitFor(n int) string {
	if n == 1 {
		return "waits for"
	}

	return "wait for"
}

// trendLabel says in words what a trend shows.
func trendLabel(trend []int) string {
	sum, last := 0, 0

	for _, n := range trend {
		sum += n
		last = n
	}

	return fmt.Sprintf("%d in 24 hours, %d in the last hour", sum, last)
}

// dryText says what an action would do.
func dryText(what string, o failed.Outcome) string {
	text := fmt.Sprintf("%s would be %s", count(o.Done, "message", "messages"), what)
	if o.Refused > 0 {
		text += fmt.Sprintf(", %d left as they are", o.Refused)
	}

	if o.Unchanged > 0 {
		text += fmt.Sprintf(", %d already have these values", o.Unchanged)
	}

	if examined := o.Done + o.Refused + o.Unchanged + o.Changed; examined < o.Selected {
		text = fmt.Sprintf("Of the oldest %d messages, %s", examined, text)
	}

	return text + "."
}

// doneText says what an action did, or that it did nothing.
func doneText(what string, o failed.Outcome) string {
	if o.Done == 0 {
		return "Nothing has changed: no message was " + what + "."
	}

	return fmt.Sprintf("%s %s.", count(o.Done, "message was", "messages were"), what)
}

// refusalsShown is the most refusals that a page lists.
const refusalsShown = 20

func firstOf(list []failed.Refusal) []failed.Refusal { return list[:min(len(list), refusalsShown)] }
