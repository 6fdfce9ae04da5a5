package console

import (
	"bytes"
	"encoding/csv"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

func (c *Console) registerActivity() {
	c.show("/activity", access.Viewer, c.activity)
	c.mux.HandleFunc("GET "+prefix+"/activity.csv", c.allowed(access.Viewer, c.exportActivity))
}

// Sizes of a page and of an export.
const (
	actionsShown    = 50
	actionsExported = 100_000
)

// activityView is a page of what operators did.
type activityView struct {
	Query   url.Values
	Actions []activity.Action
	Older   int64
}

// at returns the address of this selection at a path, with a cursor if it is not 0.
func (v activityView) at(path string, before int64) string {
	q := url.Values{}

	for _, name := range []string{"action", "who", "subject", "since", "until"} {
		if value := v.Query.Get(name); value != "" {
			q.Set(name, value)
		}
	}

	if before > 0 {
		q.Set("before", strconv.FormatInt(before, 10))
	}

	return address(prefix+path, q)
}

// actionsOf reads a filter from the address of a page.
func actionsOf(r *http.Request) (f activity.Filter, err error) {
	f = activity.Filter{Action: activity.Kind(r.Form.Get("action")), Subject: r.Form.Get("subject"), Who: r.Form.Get("who")}

	for name, t := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if text := r.Form.Get(name); text != "" {
			if *t, err = event.ParseTime(text, time.UTC); err != nil {
				return f, event.Errorf(event.Invalid, "%s: %v", name, err)
			}
		}
	}

	f.Before, err = number(r, "before", 0)

	return f, err
}

// readActions returns what operators did, without what viewers must not see.
func (c *Console) readActions(r *http.Request, limit int) ([]activity.Action, error) {
	f, err := actionsOf(r)
	if err != nil {
		return nil, err
	}

	list, err := activity.List(r.Context(), c.Pool, f, limit)

	for i := range list {
		if masked(r) {
			list[i] = operate.MaskAction(list[i])
		}
	}

	return list, err
}

func (c *Console) activity(r *http.Request) (page, error) {
	list, err := c.readActions(r, actionsShown+1)
	if err != nil {
		return page{}, err
	}

	v := activityView{Query: r.Form, Actions: list}
	if len(list) > actionsShown {
		v.Actions = list[:actionsShown]
		v.Older = v.Actions[actionsShown-1].ID
	}

	return page{Title: "Activity", Section: "/activity", Live: true, Head: activityForm(v), Body: activityBody(v)}, nil
}

func (c *Console) exportActivity(w http.ResponseWriter, r *http.Request) {
	list, err := c.readActions(r, actionsExported)
	if err != nil {
		c.fail(w, r, err)

		return
	}

	var b bytes.Buffer

	out := csv.NewWriter(&b)
	_ = out.Write([]string{"id", "at", "who", "action", "subject", "message", "why", "detail", "request"}) // to memory

	for _, a := range list {
		entry, request := "", ""
		if a.EntryID != nil {
			entry = strconv.FormatInt(*a.EntryID, 10)
		}

		if a.RequestID != nil {
			request = a.RequestID.String()
		}

		_ = out.Write([]string{strconv.FormatInt(a.ID, 10), machine(a.At), cell(a.Who), string(a.Action), cell(a.Subject), entry, cell(a.Why), cell(a.Detail), request})
	}

	out.Flush()
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="activity.csv"`)

	_, _ = w.Write(b.Bytes()) // fails only if the client has disconnected
}

// cell returns a text that no spreadsheet takes for a formula.
func cell(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		return "'" + text
	}

	return text
}

func kinds() []string {
	return postgres.Column(activity.Kinds, func(k activity.Kind) string { return string(k) })
}
