package console

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/a-h/templ"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/httpapi"
)

func (c *Console) registerEntry() {
	c.show("/failures/{id}", access.Viewer, c.entry)
	c.act("/failures/{id}/edit", access.Operator, c.editEntry)
	c.part("/failures/{id}/check", access.Operator, c.checkEntry)
	c.act("/failures/{id}/requeue", access.Operator, c.requeueEntry)
	c.act("/failures/{id}/discard", access.Operator, c.discardEntry)
}

// entryView is a failed message.
type entryView struct {
	failed.Exported

	Headers []header
	Payload shownPayload
	// Draft is what the editor holds, and Verdict what the consumer says about it.
	Draft   string
	Verdict verdict
	// Waits are the waiting keys of other consumers that have the key of a stopped message.
	Waits []failed.WaitingEntry
	// Release is that of this process.
	Release string
	// Operator is true if whoever looks may act, and Hidden if the content is hidden.
	Operator, Hidden bool
}

type header struct{ Name, Value string }

// verdict is what a consumer would do with a payload that somebody types.
type verdict struct {
	// Rejection is the reason why the consumer would reject the payload, or "".
	Rejection string
	// KeyChange says that the payload has another key, or "". NewKey is that key.
	KeyChange, NewKey string
	// Diff is what the payload changes, or "".
	Diff string
}

// entryID returns the id in the path of a request.
func entryID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		return 0, event.Missing("failed message", r.PathValue("id"))
	}

	return id, nil
}

func (c *Console) entry(r *http.Request) (page, error) {
	id, err := entryID(r)
	if err != nil {
		return page{}, err
	}

	found, err := c.Exported(r.Context(), id)
	if err != nil {
		return page{}, err
	}

	return c.entryPage(r, found, failed.Pretty(found.Current()), nil)
}

// entryPage shows a message with a draft in its editor, and the mistake in it, if any.
func (c *Console) entryPage(r *http.Request, found failed.Exported, draft string, mistake error) (page, error) {
	hidden := masked(r)
	v := entryView{Exported: found, Operator: !hidden, Hidden: hidden && c.Router.Personal(found.Topic), Release: c.Failed.Release()}
	status := http.StatusOK

	if found.State == failed.Stopped && found.Key != "" {
		var err error
		if v.Waits, err = c.WaitingKeys(r.Context(), failed.KeyFilter{Key: found.Key}, keysShown); err != nil {
			return page{}, err
		}
	}

	if hidden {
		v.Entry = c.MaskEntry(found.Entry)
		for i, a := range v.Actions {
			v.Actions[i] = operate.MaskAction(a)
		}
	}

	for name, value := range v.Entry.Headers {
		v.Headers = append(v.Headers, header{plain(name), plain(value)})
	}

	slices.SortFunc(v.Headers, func(a, b header) int { return strings.Compare(a.Name, b.Name) })

	if !v.Hidden {
		v.Payload = shownOf(found.Current())
		v.Draft = draft
	}

	if mistake != nil {
		f := c.explain(r, mistake)
		v.Verdict, status = c.verdict(found.Entry, typed(draft)), f.status

		if v.Verdict.Rejection == "" && v.Verdict.KeyChange == "" {
			v.Verdict.Rejection = f.detail
		}
	}

	return page{Title: "Message " + strconv.FormatInt(found.ID, 10), Section: "/failures", Status: status, Body: entryBody(v)}, nil
}

// verdict returns what the consumer of an entry would do with a payload.
func (c *Console) verdict(e failed.Entry, payload []byte) (v verdict) {
	key, err := c.Router.Check(e.Consumer, payload)
	if err != nil {
		v.Rejection = plain(event.Text(err.Error()))
	}

	if key != "" && failed.StoredKey(key) != e.FailedKey {
		v.NewKey = key
		v.KeyChange = "The edit changes the key to " + plain(event.Text(key)) + ". Later messages with that key may have been applied already, and there is no record of them."
	}

	if !bytes.Equal(failed.Compact(payload), failed.Compact(e.Current())) {
		v.Diff = failed.DiffTo(e, payload)
	}

	return v
}

// changeable returns a stopped message, which nobody has changed since the page was shown.
func (c *Console) changeable(r *http.Request) (found failed.Exported, err error) {
	id, err := entryID(r)
	if err != nil {
		return found, err
	}

	if found, err = c.Exported(r.Context(), id); err != nil {
		return found, err
	}

	if err := found.Actable(); err != nil {
		return found, err
	}

	if r.PostFormValue("revision") != strconv.Itoa(found.Revision) {
		return found, failed.ChangedError(id)
	}

	return found, nil
}

func (c *Console) checkEntry(r *http.Request) (templ.Component, error) {
	id, err := entryID(r)
	if err != nil {
		return nil, err
	}

	found, err := c.Failed.Get(r.Context(), id)
	if err != nil {
		return nil, err
	}

	return verdictBody(c.verdict(found, typed(r.PostFormValue("payload")))), nil
}

func (c *Console) editEntry(r *http.Request) (page, error) {
	found, err := c.changeable(r)
	if err != nil {
		return page{}, err
	}

	draft := r.PostFormValue("payload")
	payload := typed(draft)

	if bytes.Equal(payload, failed.Compact(found.Current())) {
		return c.did(found.ID, true, "Nothing has changed: the payload is the same."), nil
	}

	edit := failed.Edit{Revision: found.Revision, Payload: payload, NewKey: r.PostFormValue("new_key")}

	_, err = c.Failed.Edit(r.Context(), found.ID, edit, actor(r), c.Router.Check)
	if kind := operate.OutcomeOf(err).Name; err != nil && (kind == string(event.Rejected) || kind == string(event.KeyChange)) {
		return c.entryPage(r, found, draft, err)
	}

	if err != nil {
		return page{}, err
	}

	number := strconv.FormatInt(found.ID, 10)

	return page{Title: "Message " + number, Section: "/failures", Body: outcomePage(outcome{
		Done: "The edit is stored. Nothing is applied yet: requeue the message to apply it.", Back: "/failures/" + number + "#requeue", BackText: "Go on to requeue message " + number,
	})}, nil
}

func (c *Console) requeueEntry(r *http.Request) (page, error) {
	found, err := c.changeable(r)
	if err != nil {
		return page{}, err
	}

	by := actor(r)

	err = c.ActOnOne(found.Entry, func(f failed.Filter) (failed.Outcome, error) {
		return c.Failed.Requeue(r.Context(), f, by, words(r), c.Router.Check)
	})
	if err != nil {
		return page{}, err
	}

	return page{}, redirectError{"/requests/" + by.Request.String()}
}

// words returns what somebody explicitly allows a requeue to do.
func words(r *http.Request) failed.Pace {
	return failed.Pace{OutOfOrder: r.Form.Has("out_of_order"), Overtaken: r.Form.Has("overtaken")}
}

func (c *Console) discardEntry(r *http.Request) (page, error) {
	found, err := c.changeable(r)
	if err != nil {
		return page{}, err
	}

	err = c.ActOnOne(found.Entry, func(f failed.Filter) (failed.Outcome, error) {
		return c.Failed.Discard(r.Context(), f, actor(r), failed.Pace{})
	})
	if err != nil {
		return page{}, err
	}

	return c.did(found.ID, false, "The message is discarded."), nil
}

// did says what an action on one message did.
func (c *Console) did(id int64, nothing bool, text string) page {
	number := strconv.FormatInt(id, 10)

	return page{Title: "Message " + number, Section: "/failures", Body: outcomePage(outcome{
		Done: text, NoneOf: nothing, Back: "/failures/" + number, BackText: "Back to message " + number,
	})}
}

// payloadAt returns the address at which the API serves a payload, byte for byte.
func payloadAt(id int64, which string) templ.SafeURL {
	return templ.SafeURL(httpapi.Prefix + "/failed/" + strconv.FormatInt(id, 10) + "/payload?which=" + which)
}

// sameKey returns the address of all failed messages with the key of an entry.
func sameKey(e failed.Entry) templ.SafeURL {
	return templ.SafeURL(filter{State: "all", Selection: operate.Selection{Key: e.Key, Consumer: e.Consumer}}.at("/failures"))
}

// group returns the address of the group of an entry.
func groupAt(e failed.Entry) templ.SafeURL {
	return templ.SafeURL(filter{State: string(e.State), Selection: operate.Selection{Group: e.Group}}.at("/failures"))
}

// entryAction returns the address of an action on a message.
func entryAction(id int64, action string) templ.SafeURL {
	return entryAt(id) + templ.SafeURL("/"+action)
}
