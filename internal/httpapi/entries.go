package httpapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

// Selector is the query that selects entries.
type Selector struct {
	Group     string    `query:"group" maxLength:"64"`
	Topic     string    `query:"topic" maxLength:"250"`
	Consumer  string    `query:"consumer" maxLength:"250"`
	Reason    string    `query:"reason" enum:"too_large,malformed,invalid,refused,conflict,handler_error,panic"`
	Key       string    `query:"key" maxLength:"2000"`
	MessageID string    `query:"message_id" format:"uuid"`
	Since     time.Time `query:"since" doc:"Only what failed since then."`
	Until     time.Time `query:"until" doc:"Only what failed before then."`
	State     string    `query:"state" enum:"waiting,stopped,resolved,all" default:"stopped"`
}

func (s Selector) filter() failed.Filter {
	f := failed.Filter{
		Group: s.Group, Topic: s.Topic, Consumer: s.Consumer, Reason: event.Reason(s.Reason), Key: s.Key,
		MessageID: parsed(s.MessageID), Since: s.Since, Until: s.Until, State: failed.State(s.State),
	}
	if s.State == "all" {
		f.State = ""
	}

	return f
}

// parsed is a UUID whose form has been checked; none is the zero UUID.
func parsed(id string) uuid.UUID {
	u, _ := uuid.Parse(id)

	return u
}

// query is s as it was asked, for the link to the next page.
func (s Selector) query() url.Values {
	values := url.Values{}

	for name, value := range map[string]string{
		"group": s.Group, "topic": s.Topic, "consumer": s.Consumer, "reason": s.Reason, "key": s.Key,
		"message_id": s.MessageID, "state": s.State,
	} {
		if value != "" {
			values.Set(name, value)
		}
	}

	for name, value := range map[string]time.Time{"since": s.Since, "until": s.Until} {
		if !value.IsZero() {
			values.Set(name, value.Format(time.RFC3339Nano))
		}
	}

	return values
}

// EntrySummary is an entry in a list.
type EntrySummary struct {
	ID           int64      `json:"id"`
	Consumer     string     `json:"consumer"`
	Topic        string     `json:"topic"`
	MessageID    string     `json:"message_id" format:"uuid"`
	Origin       string     `json:"origin" doc:"Where the message was read."`
	Key          string     `json:"key"`
	Reason       string     `json:"reason"`
	Error        string     `json:"error"`
	Group        string     `json:"group" doc:"The same for entries that failed for the same cause."`
	Cause        string     `json:"cause" doc:"The error with its values taken out."`
	Deliveries   int        `json:"deliveries" doc:"How often the message was poisoned."`
	Attempts     int        `json:"attempts" doc:"How often it was tried in all, as far as that is known."`
	FirstAt      time.Time  `json:"first_at"`
	LastAt       time.Time  `json:"last_at"`
	FirstRelease string     `json:"first_release"`
	LastRelease  string     `json:"last_release"`
	State        string     `json:"state" enum:"waiting,stopped,edited,applied,discarded" doc:"edited is stopped with an edited payload; applied and discarded are resolved."`
	ResolvedAt   *time.Time `json:"resolved_at,omitempty"`
	AppliedAs    string     `json:"applied_as,omitempty" format:"uuid" doc:"The id under which it is applied, if its own was applied with another body."`
}

func summaryOf(e failed.Entry) EntrySummary {
	s := EntrySummary{
		ID: e.ID, Consumer: e.Consumer, Topic: e.Topic, MessageID: e.MessageID.String(), Origin: e.Origin, Key: e.Key,
		Reason: string(e.Reason), Error: e.Error, Group: e.Group, Cause: e.Cause, Deliveries: e.Deliveries, Attempts: e.Attempts,
		FirstAt: e.FirstAt, LastAt: e.LastAt, FirstRelease: e.FirstRelease, LastRelease: e.LastRelease,
		State: cmp.Or(string(e.Resolution), string(e.State)), ResolvedAt: e.ResolvedAt,
	}

	if e.State == failed.Stopped && e.Edited != nil {
		s.State = "edited"
	}

	if e.AppliedAs != nil {
		s.AppliedAs = e.AppliedAs.String()
	}

	return s
}

// entryDetail is an entry with its message.
type entryDetail struct {
	EntrySummary

	Headers headers  `json:"headers"`
	Payload content  `json:"payload" doc:"As it came."`
	Edited  *content `json:"edited,omitempty" doc:"As an operator mended it."`
}

func detailOf(e failed.Entry) entryDetail {
	d := entryDetail{EntrySummary: summaryOf(e), Headers: headers(e.Headers), Payload: contentOf(e.Payload)}
	if e.Edited != nil {
		edited := contentOf(e.Edited)
		d.Edited = &edited
	}

	return d
}

type (
	entriesInput struct {
		Paging
		Selector
	}

	entriesOutput struct {
		Page

		Body struct {
			Entries []EntrySummary `json:"entries" nullable:"false"`
			Next    string         `json:"next,omitempty" doc:"The cursor of the next page."`
		}
	}

	groupsOutput struct {
		Page

		Body struct {
			Groups []failed.Group `json:"groups" nullable:"false"`
			Next   string         `json:"next,omitempty" doc:"The cursor of the next page."`
		}
	}

	// EntryInput names an entry.
	EntryInput struct {
		ID int64 `path:"id" minimum:"1" example:"17"`
	}

	entryOutput struct {
		ETag string `header:"ETag"`
		Body entryDetail
	}

	// ChangeInput is what all operations have that change one entry.
	ChangeInput struct {
		EntryInput
		Caller

		IfMatch string `header:"If-Match" maxLength:"1000" doc:"Only if the entry still has this ETag."`
	}

	// WhyBody may give a reason.
	WhyBody struct {
		Why string `json:"why,omitempty" maxLength:"2000" doc:"For the audit row."`
	}

	// ReasonBody must give a reason.
	ReasonBody struct {
		Why string `json:"why" minLength:"1" maxLength:"2000" doc:"The reason, for the audit row."`
	}

	// ManyBody selects open entries to act on.
	ManyBody struct {
		IDs       []int64   `json:"ids,omitempty" maxItems:"1000" nullable:"false"`
		Group     string    `json:"group,omitempty" maxLength:"64"`
		Topic     string    `json:"topic,omitempty" maxLength:"250"`
		Consumer  string    `json:"consumer,omitempty" maxLength:"250"`
		Reason    string    `json:"reason,omitempty" enum:"too_large,malformed,invalid,refused,conflict,handler_error,panic"`
		Key       string    `json:"key,omitempty" maxLength:"2000"`
		MessageID string    `json:"message_id,omitempty" format:"uuid"`
		Since     time.Time `json:"since,omitzero"`
		Until     time.Time `json:"until,omitzero"`
		All       bool      `json:"all,omitempty" doc:"All open entries: needed when nothing else selects."`
		After     int64     `json:"after,omitempty" minimum:"0" doc:"Go on behind this entry: next of the answer before."`
		Limit     int       `json:"limit,omitempty" minimum:"1" maximum:"1000" default:"1000" doc:"Entries to look at, at most."`
		DryRun    bool      `json:"dry_run,omitempty" doc:"Only tell what would be done."`
	}

	outcomeOutput struct {
		Body outcome
	}
)

// outcome is what an action on many entries did.
type outcome struct {
	Selected int              `json:"selected" doc:"Open entries that there were to act on."`
	Done     int              `json:"done"`
	Refused  int              `json:"refused" doc:"Entries that stay open."`
	Refusals []failed.Refusal `json:"refusals" nullable:"false" doc:"Why, for the first 100."`
	DryRun   bool             `json:"dry_run"`
	Next     int64            `json:"next,omitempty" doc:"There is more: send the request again with this as after."`
}

// entries registers the operations on the poison queue.
func (api API) entries(h huma.API) {
	huma.Register(h, huma.Operation{
		OperationID: "list-poison-entries", Method: http.MethodGet, Path: "/poison/entries", Tags: []string{"poison"},
		Summary: "List entries, the newest first", Errors: errorsOf(),
	}, api.listEntries)
	huma.Register(h, huma.Operation{
		OperationID: "list-poison-groups", Method: http.MethodGet, Path: "/poison/groups", Tags: []string{"poison"},
		Summary: "List what failed for the same cause together, the most first", Errors: errorsOf(),
	}, api.listGroups)
	huma.Register(h, huma.Operation{
		OperationID: "get-poison-entry", Method: http.MethodGet, Path: "/poison/entries/{id}", Tags: []string{"poison"},
		Summary: "Show an entry with its message", Errors: errorsOf(http.StatusNotFound),
		Responses: map[string]*huma.Response{"304": {Description: "Not Modified"}},
	}, api.getEntry)
	huma.Register(h, huma.Operation{
		OperationID: "edit-poison-entry", Method: http.MethodPatch, Path: "/poison/entries/{id}", Tags: []string{"poison"},
		Summary: "Mend the payload of an open entry; the original stays", MaxBodyBytes: maxBody,
		Errors: actionErrors(http.StatusNotFound, http.StatusPreconditionFailed),
	}, api.editEntry)
	huma.Register(h, huma.Operation{
		OperationID: "list-poison-actions", Method: http.MethodGet, Path: "/poison/entries/{id}/actions", Tags: []string{"poison"},
		Summary: "List what was done with an entry, the oldest first", Errors: errorsOf(http.StatusNotFound),
	}, api.listActions)
	huma.Register(h, huma.Operation{
		OperationID: "get-poison-payload", Method: http.MethodGet, Path: "/poison/entries/{id}/payload", Tags: []string{"poison"},
		Summary: "Download the payload of an entry, byte for byte", Errors: errorsOf(http.StatusNotFound),
		Responses: plainText("The payload."),
	}, api.download)
	huma.Register(h, huma.Operation{
		OperationID: "diff-poison-entry", Method: http.MethodGet, Path: "/poison/entries/{id}/diff", Tags: []string{"poison"},
		Summary: "Show what was changed in the payload, as a unified diff", Errors: errorsOf(http.StatusNotFound),
		Responses: plainText("The diff; empty if nothing was changed."),
	}, api.diff)
	huma.Register(h, huma.Operation{
		OperationID: "requeue-poison-entry", Method: http.MethodPost, Path: "/poison/entries/{id}/requeue", Tags: []string{"poison"},
		Summary: "Send an open entry again to the consumer that failed",
		Errors:  actionErrors(http.StatusNotFound, http.StatusPreconditionFailed),
	}, api.requeueEntry)
	huma.Register(h, huma.Operation{
		OperationID: "discard-poison-entry", Method: http.MethodPost, Path: "/poison/entries/{id}/discard", Tags: []string{"poison"},
		Summary: "Close an open entry for good", Errors: actionErrors(http.StatusNotFound, http.StatusPreconditionFailed),
	}, api.discardEntry)
	huma.Register(h, huma.Operation{
		OperationID: "requeue-poison", Method: http.MethodPost, Path: "/poison/requeue", Tags: []string{"poison"},
		Summary: "Send many open entries again, in the order of their arrival", Description: manyDescription, Errors: actionErrors(),
	}, api.requeueMany)
	huma.Register(h, huma.Operation{
		OperationID: "discard-poison", Method: http.MethodPost, Path: "/poison/discard", Tags: []string{"poison"},
		Summary: "Close many open entries for good", Description: manyDescription, Errors: actionErrors(),
	}, api.discardMany)
}

const manyDescription = "Acts on at most `limit` entries before it answers. As long as the answer has `next`, there is more."

// maxBody is room for the largest payload, with each character escaped.
const maxBody = 6*event.MaxPayload + 1<<16

func plainText(description string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {
		Description: description,
		Content:     map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
	}}
}

func (api API) listEntries(ctx context.Context, in *entriesInput) (*entriesOutput, error) {
	f := in.filter()
	if err := in.cursor("%d", &f.Before); err != nil {
		return nil, err
	}

	entries, err := api.Failed.Summaries(ctx, f, in.Limit+1)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	out := &entriesOutput{}
	out.Body.Entries = []EntrySummary{}

	for i, e := range entries {
		if i == in.Limit {
			out.Body.Next, out.Link = next("/poison/entries", in.query(), in.Limit, "%d", entries[i-1].ID)

			break
		}

		out.Body.Entries = append(out.Body.Entries, summaryOf(e))
	}

	return out, nil
}

func (api API) listGroups(ctx context.Context, in *entriesInput) (*groupsOutput, error) {
	var after failed.GroupsAfter
	if err := in.cursor("%d %s", &after.Entries, &after.ID); err != nil {
		return nil, err
	}

	groups, err := api.Failed.Groups(ctx, in.filter(), after, in.Limit+1)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	out := &groupsOutput{}

	if len(groups) > in.Limit {
		groups = groups[:in.Limit]
		last := groups[in.Limit-1]
		out.Body.Next, out.Link = next("/poison/groups", in.query(), in.Limit, "%d %s", last.Entries, last.ID)
	}

	out.Body.Groups = append([]failed.Group{}, groups...)

	return out, nil
}

func (api API) getEntry(ctx context.Context, in *struct {
	EntryInput

	IfNoneMatch string `header:"If-None-Match" maxLength:"1000" doc:"304 if the entry still has this ETag."`
},
) (*entryOutput, error) {
	e, err := api.Failed.Get(ctx, in.ID)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	if in.IfNoneMatch != "" && matches(in.IfNoneMatch, etag(e), true) {
		return nil, huma.ErrorWithHeaders(huma.Status304NotModified(), http.Header{"ETag": {etag(e)}})
	}

	return entryAnswer(e), nil
}

func entryAnswer(e failed.Entry) *entryOutput { return &entryOutput{ETag: etag(e), Body: detailOf(e)} }

// seen returns the entry that is to be changed, in the state that the caller
// has seen.
func (api API) seen(ctx context.Context, in ChangeInput) (failed.Entry, error) {
	e, err := api.Failed.Get(ctx, in.ID)

	switch {
	case err != nil:
		return e, err
	case in.IfMatch != "" && !matches(in.IfMatch, etag(e), false):
		return e, failed.ChangedError(e.ID)
	default:
		return e, e.Actable()
	}
}

func (api API) editEntry(ctx context.Context, in *struct {
	ChangeInput

	Body struct {
		WhyBody

		Payload content `json:"payload" example:"{\"text\":\"{\\\"order\\\":{\\\"id\\\":\\\"order_123\\\",\\\"product_id\\\":\\\"product_1\\\",\\\"quantity\\\":2,\\\"total_amount\\\":99.99}}\"}"`
	}
},
) (*entryOutput, error) {
	payload, err := in.Body.Payload.bytes()
	if err != nil {
		return nil, err
	}

	e, err := api.seen(ctx, in.ChangeInput)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	e, err = api.Failed.Edit(ctx, e.ID, e.Revision, payload, in.actor(in.Body.Why), api.Check)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	return entryAnswer(e), nil
}

// action is what was done with an entry.
type action struct {
	Action    string    `json:"action" enum:"edited,requeued,discarded,reopened,skipped"`
	Who       string    `json:"who"`
	Why       string    `json:"why"`
	At        time.Time `json:"at"`
	Payload   *content  `json:"payload,omitempty" doc:"That after an edit."`
	MessageID string    `json:"message_id,omitempty" format:"uuid" doc:"The id under which it was requeued."`
}

type actionsOutput struct {
	Body struct {
		Actions []action `json:"actions" nullable:"false"`
	}
}

func (api API) listActions(ctx context.Context, in *EntryInput) (*actionsOutput, error) {
	if _, err := api.Failed.Get(ctx, in.ID); err != nil {
		return nil, api.problem(ctx, err)
	}

	actions, err := api.Failed.Actions(ctx, in.ID)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	out := &actionsOutput{}
	out.Body.Actions = []action{}

	for _, a := range actions {
		view := action{Action: string(a.Action), Who: a.Who, Why: a.Why, At: a.At}

		if a.Payload != nil {
			payload := contentOf(a.Payload)
			view.Payload = &payload
		}

		if a.MessageID != nil {
			view.MessageID = a.MessageID.String()
		}

		out.Body.Actions = append(out.Body.Actions, view)
	}

	return out, nil
}

// plainOutput is text for people, which a browser must not take for a page.
type plainOutput struct {
	ContentType string `header:"Content-Type"`
	Disposition string `header:"Content-Disposition"`
	Body        []byte
}

func (api API) download(ctx context.Context, in *struct {
	EntryInput

	Which string `query:"which" enum:"original,edited" default:"original" doc:"edited is the original as long as nobody edits it."`
},
) (*plainOutput, error) {
	e, err := api.Failed.Get(ctx, in.ID)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	payload := e.Payload
	if in.Which == "edited" {
		payload = e.Current()
	}

	return &plainOutput{
		ContentType: "text/plain", Disposition: fmt.Sprintf(`attachment; filename="message-%d-%s.txt"`, e.ID, in.Which), Body: payload,
	}, nil
}

func (api API) diff(ctx context.Context, in *EntryInput) (*plainOutput, error) {
	e, err := api.Failed.Get(ctx, in.ID)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	return &plainOutput{
		ContentType: "text/plain", Disposition: fmt.Sprintf(`attachment; filename="message-%d.diff"`, e.ID), Body: []byte(failed.Diff(e)),
	}, nil
}

func (api API) requeueEntry(ctx context.Context, in *struct {
	ChangeInput
	Once

	Body struct {
		WhyBody

		OutOfOrder bool `json:"out_of_order,omitempty" doc:"Also if older entries of its key are open."`
	}
},
) (*entryOutput, error) {
	return api.actOnOne(ctx, in.ChangeInput, func(f failed.Filter) (failed.Outcome, error) {
		return api.Failed.Requeue(ctx, f, in.actor(in.Body.Why), failed.Pace{OutOfOrder: in.Body.OutOfOrder}, api.Check)
	})
}

func (api API) discardEntry(ctx context.Context, in *struct {
	ChangeInput
	Once

	Body ReasonBody
},
) (*entryOutput, error) {
	return api.actOnOne(ctx, in.ChangeInput, func(f failed.Filter) (failed.Outcome, error) {
		return api.Failed.Discard(ctx, f, in.actor(in.Body.Why), failed.Pace{})
	})
}

func (api API) actOnOne(ctx context.Context, in ChangeInput, act func(failed.Filter) (failed.Outcome, error)) (*entryOutput, error) {
	e, err := api.seen(ctx, in)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	o, err := act(failed.Filter{IDs: []int64{e.ID}, Revision: e.Revision})

	switch {
	case err != nil:
		return nil, api.problem(ctx, err)
	case o.Refused > 0:
		return nil, huma.Error409Conflict("message " + fmt.Sprint(e.ID) + " is refused: " + event.Text(o.Refusals[0].Error))
	case o.Done == 0:
		return nil, api.problem(ctx, failed.ChangedError(e.ID))
	}

	e, err = api.Failed.Get(ctx, e.ID)
	if err != nil {
		return nil, api.problem(ctx, err)
	}

	return entryAnswer(e), nil
}

func (api API) requeueMany(ctx context.Context, in *struct {
	Caller
	Once

	Body struct {
		ManyBody
		WhyBody

		OutOfOrder bool `json:"out_of_order,omitempty" doc:"Also what has older open entries of its key."`
	}
},
) (*outcomeOutput, error) {
	return api.actOnMany(ctx, in.Body.ManyBody, func(ctx context.Context, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
		pace.OutOfOrder = in.Body.OutOfOrder

		return api.Failed.Requeue(ctx, f, in.actor(in.Body.Why), pace, api.Check)
	})
}

func (api API) discardMany(ctx context.Context, in *struct {
	Caller
	Once

	Body struct {
		ManyBody
		ReasonBody
	}
},
) (*outcomeOutput, error) {
	return api.actOnMany(ctx, in.Body.ManyBody, func(ctx context.Context, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
		return api.Failed.Discard(ctx, f, in.actor(in.Body.Why), pace)
	})
}

// manyTimeout bounds an action on many entries; then the answer says where to
// go on. It is well below the server's own limit.
const manyTimeout = 15 * time.Second

func (api API) actOnMany(ctx context.Context, body ManyBody,
	act func(ctx context.Context, f failed.Filter, pace failed.Pace) (failed.Outcome, error),
) (*outcomeOutput, error) {
	f := failed.Filter{
		IDs: body.IDs, Group: body.Group, Topic: body.Topic, Consumer: body.Consumer, Reason: event.Reason(body.Reason), Key: body.Key,
		MessageID: parsed(body.MessageID), Since: body.Since, Until: body.Until,
	}

	if f.Selective() == body.All {
		return nil, huma.Error422UnprocessableEntity("expected ids, a filter, or all, and not both: nothing is done by oversight")
	}

	f.After = body.After

	bounded, cancel := context.WithTimeout(ctx, manyTimeout)
	defer cancel()

	o, err := act(bounded, f, failed.Pace{Limit: body.Limit, DryRun: body.DryRun})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && o.Last > 0 {
		err = nil // the caller goes on behind the last one
	}

	if err != nil {
		return nil, api.problem(ctx, err)
	}

	out := outcome{Selected: o.Selected, Done: o.Done, Refused: o.Refused, Refusals: o.Refusals, DryRun: o.DryRun}
	if o.Done+o.Refused < o.Selected {
		out.Next = o.Last
	}

	return &outcomeOutput{Body: out}, nil
}
