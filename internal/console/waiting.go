package console

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/a-h/templ"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func (c *Console) registerWaiting() {
	c.show("/waiting", access.Viewer, c.waiting)
	c.show("/waiting/{id}", access.Viewer, c.queue)
	c.act("/waiting/retry", access.Operator, c.retryKeys)
	c.act("/waiting/{id}/retry", access.Operator, c.retryKey)
	c.act("/waiting/{id}/skip", access.Operator, c.skip)
}

// keysShown is the most waiting keys on a page.
const keysShown = 50

// waitingView is the waiting keys that a filter selects.
type waitingView struct {
	failed.KeyFilter

	Keys []failed.WaitingEntry
	// Total is their number, at most postgres.MaxCount + 1.
	Total int
}

// keyFilter reads a filter from the address or the form of a request.
func keyFilter(r *http.Request) failed.KeyFilter {
	return failed.KeyFilter{Consumer: r.Form.Get("consumer"), Key: r.Form.Get("key")}
}

func (c *Console) waiting(r *http.Request) (page, error) {
	v := waitingView{KeyFilter: keyFilter(r)}

	var err error
	if v.Keys, err = c.WaitingKeys(r.Context(), v.KeyFilter, keysShown); err != nil {
		return page{}, err
	}

	if v.Total, err = c.Failed.CountKeys(r.Context(), v.KeyFilter); err != nil {
		return page{}, err
	}

	for i := range v.Keys {
		if masked(r) {
			v.Keys[i].Entry = c.MaskEntry(v.Keys[i].Entry)
		}
	}

	p := page{Title: "Waiting keys", Section: "/waiting", Live: true, Head: waitingForm(v.KeyFilter, c.ConsumerNames()), Body: waitingBody(v)}
	if !masked(r) && v.Total > 0 {
		p.Tail = retryForm(v.KeyFilter)
	}

	return p, nil
}

// queueView is the messages that wait for a key, in order.
type queueView struct {
	Key     failed.WaitingEntry
	Entries []failed.Entry
	// Stopped are messages with the same key that need a decision. One of them may be what
	// the first message awaits.
	Stopped []failed.Entry
}

// Holds reports whether the first message awaits a message on the topic of a stopped one.
// It then waits for that decision, however often it is retried.
func (v queueView) Holds(e failed.Entry) bool { return slices.Contains(v.Key.Awaits, e.Topic) }

func (c *Console) queue(r *http.Request) (page, error) {
	id, err := entryID(r)
	if err != nil {
		return page{}, err
	}

	var v queueView

	v.Entries, err = c.Failed.Queue(r.Context(), id)
	if event.KindOf(err) == event.NotFound {
		return c.gone(r, id)
	}

	if err != nil {
		return page{}, err
	}

	keys, err := c.WaitingKeys(r.Context(), failed.KeyFilter{ID: id}, 1)
	if err != nil {
		return page{}, err
	}

	if len(keys) == 0 { // since the other query
		return c.gone(r, id)
	}

	v.Key = keys[0]
	v.Entries = v.Entries[:min(len(v.Entries), keysShown)]

	if v.Key.Key != "" {
		if v.Stopped, err = c.Failed.Summaries(r.Context(), failed.Filter{Key: v.Key.Key, State: failed.Stopped}, entriesShown); err != nil {
			return page{}, err
		}
	}

	if masked(r) {
		v.Key.Entry = c.MaskEntry(v.Key.Entry)

		for _, list := range [][]failed.Entry{v.Entries, v.Stopped} {
			for i := range list {
				list[i] = c.MaskEntry(list[i])
			}
		}
	}

	p := page{Title: "Waiting key", Section: "/waiting", Live: true, Body: queueBody(v)}
	if !masked(r) {
		p.Tail = queueForms(v.Key)
	}

	return p, nil
}

// gone says that a message waits no more.
func (c *Console) gone(r *http.Request, id int64) (page, error) {
	if _, err := c.Failed.Get(r.Context(), id); err != nil {
		return page{}, err
	}

	return page{Title: "Waiting key", Section: "/waiting", Live: true, Body: queueGone(id)}, nil
}

func (c *Console) retryKeys(r *http.Request) (page, error) {
	f := keyFilter(r)

	return c.retryNow(r, f, f == failed.KeyFilter{})
}

func (c *Console) retryKey(r *http.Request) (page, error) {
	id, err := entryID(r)
	if err != nil {
		return page{}, err
	}

	return c.retryNow(r, failed.KeyFilter{ID: id}, false)
}

// retryNow makes waiting keys due and shows what becomes of their messages.
func (c *Console) retryNow(r *http.Request, f failed.KeyFilter, all bool) (page, error) {
	by := actor(r)

	done, err := c.Retry(r.Context(), f, all, by)
	if err != nil {
		return page{}, err
	}

	if done.Due == 0 {
		return page{Title: "Retry", Section: "/waiting", Body: outcomePage(outcome{
			Done: "Nothing has changed: no key is waiting any more.", NoneOf: true, Back: "/waiting", BackText: "Back to the waiting keys",
		})}, nil
	}

	return page{}, redirectError{"/requests/" + by.Request.String()}
}

func (c *Console) skip(r *http.Request) (page, error) {
	id, err := entryID(r)
	if err != nil {
		return page{}, err
	}

	done, err := c.Failed.Skip(r.Context(), id, actor(r))
	if err != nil {
		return page{}, err
	}

	o := outcome{
		Done: "Message " + strconv.FormatInt(done.ID, 10) + " is stopped. It needs a decision.", More: []string{"No other message waits for its key."},
		Back: "/failures/" + strconv.FormatInt(done.ID, 10), BackText: "See the message",
	}
	if done.Next != 0 {
		o.More = []string{"The next message of the key, " + strconv.FormatInt(done.Next, 10) + ", is due now."}
	}

	return page{Title: "Skip", Section: "/waiting", Body: outcomePage(o)}, nil
}

// queueAt returns the address of the key that a message waits for, or of an action on it.
func queueAt(id int64, action string) templ.SafeURL {
	return templ.SafeURL(prefix + "/waiting/" + strconv.FormatInt(id, 10) + action)
}

// keyFields returns a filter as hidden fields.
func keyFields(f failed.KeyFilter) templ.Component {
	return hiddenFields(url.Values{"consumer": {f.Consumer}, "key": {f.Key}})
}

func keysText(v waitingView) string {
	if v.Total > len(v.Keys) {
		return "The first " + strconv.Itoa(len(v.Keys)) + " of " + strconv.Itoa(v.Total) + " waiting keys"
	}

	return count(v.Total, "waiting key", "waiting keys")
}

// keyText returns a key on one line. A message without a key is named by its id.
func keyText(k failed.WaitingEntry) string {
	if k.Key == "" {
		return "message " + strconv.FormatInt(k.ID, 10)
	}

	return short(k.Key, 120)
}
