package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/conditional"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// entry is a failed message. Lists omit its headers and payloads.
type entry struct {
	failed.Entry

	Headers  *headers `json:"headers,omitempty"`
	Payload  *content `json:"payload,omitempty" doc:"The original payload."`
	Edited   *content `json:"edited,omitempty" doc:"The payload after an operator's edit."`
	IsEdited bool     `json:"is_edited"`

	Overtaken *failed.Overtaken `json:"overtaken,omitempty" doc:"Later messages of the key that were applied since the message stopped."`
	Unknown   string            `json:"unknown,omitempty" doc:"Why the message could not be read after the action. The action succeeded; the message is shown as it was before."`
}

func summary(e failed.Entry) entry { return entry{Entry: e, IsEdited: e.Edited != nil} }

func detail(e failed.Entry) entry {
	view := summary(e)
	view.Headers, view.Payload, view.Edited = &headers{e.Headers}, contentOf(e.Payload), contentOf(e.Edited)

	return view
}

func exported(e failed.Exported) entry {
	view := detail(e.Entry)
	view.Overtaken = e.Overtaken

	return view
}

// EntryInput identifies a failed message.
type EntryInput struct {
	ID int64 `path:"id" minimum:"1" example:"17"`
}

// Conditions holds the conditional headers of a request.
type Conditions struct{ conditional.Params }

// Resolve implements huma.Resolver. It allows spaces in lists of tags.
func (c *Conditions) Resolve(ctx huma.Context) []error {
	for _, tags := range [][]string{c.IfMatch, c.IfNoneMatch} {
		for i, tag := range tags {
			tags[i] = strings.TrimSpace(tag)
		}
	}

	return c.Params.Resolve(ctx)
}

// check returns a 304 or 412 response if the conditions do not hold.
func (c *Conditions) check(e failed.Exported) error {
	if failure := c.PreconditionFailed(tag(e), e.LastAt); failure != nil {
		if failure.GetStatus() == http.StatusNotModified {
			return huma.ErrorWithHeaders(failure, http.Header{"ETag": {quoted(e)}})
		}

		return failed.ChangedError(e.ID)
	}

	return nil
}

// tag returns the entity tag of a failed message.
func tag(e failed.Exported) string {
	text := fmt.Sprintf("%d-%d", e.ID, e.Revision)
	if e.Overtaken != nil {
		text += fmt.Sprintf("-%d", e.Overtaken.Messages)
	}

	return text
}

func quoted(e failed.Exported) string { return `"` + tag(e) + `"` }

// ChangeInput is the input of all operations that change one failed message.
type ChangeInput struct {
	EntryInput
	Caller
	Conditions
}

type entryOutput struct {
	ETag     string `header:"ETag"`
	Location string `header:"Location" doc:"Where to ask for the outcome of a requeue."`
	Body     entry
}

// Paced limits an action to part of the selected messages.
type Paced struct {
	IDs    []int64 `json:"ids,omitempty" maxItems:"1000" nullable:"false"`
	All    bool    `json:"all,omitempty" doc:"All stopped messages: required if nothing else is selected."`
	After  int64   `json:"after,omitempty" minimum:"0" doc:"Continue after this message: next from the previous response."`
	Limit  int     `json:"limit,omitempty" minimum:"1" maximum:"1000" default:"1000" doc:"The maximum number of messages to examine."`
	DryRun bool    `json:"dry_run,omitempty" doc:"Only report what the action would do."`
}

// Words explicitly allow what a requeue otherwise refuses.
type Words struct {
	OutOfOrder bool `json:"out_of_order,omitempty" doc:"Requeue even if older messages of the key are stopped."`
	Overtaken  bool `json:"overtaken,omitempty" doc:"Requeue even if later messages of the key were applied: it may overwrite what they did."`
}

func (w Words) pace(p failed.Pace) failed.Pace {
	p.OutOfOrder, p.Overtaken = w.OutOfOrder, w.Overtaken

	return p
}

// outcomeAt returns the path of a request's outcome.
func outcomeAt(by activity.Actor) string { return Prefix + "/requests/" + by.Request.String() }

// outcome is the result of an action on many messages.
type outcome struct {
	Selected  int                `json:"selected" doc:"The number of stopped messages selected."`
	Done      int                `json:"done"`
	Refused   int                `json:"refused" doc:"The number of messages that stay stopped."`
	RefusedBy map[event.Kind]int `json:"refused_by" doc:"Their number by reason: rejected, overtaken, or conflict."`
	Refusals  []failed.Refusal   `json:"refusals" nullable:"false" doc:"The reasons, for the first 100."`
	Unchanged int                `json:"unchanged,omitempty" doc:"The number of messages whose payload the edit leaves as it is."`
	Diffs     []failed.EntryDiff `json:"diffs,omitempty" doc:"What the edit changes in the first three messages, as unified diffs."`
	Changed   int                `json:"changed" doc:"The number of messages that were no longer stopped."`
	Held      []operate.Held     `json:"held" nullable:"false" doc:"What is holding up the messages that are now due."`
	Unknown   string             `json:"unknown,omitempty" doc:"Why it is unknown what is holding them up. The action succeeded."`
	Request   uuid.UUID          `json:"request" doc:"Ask for the outcome at /requests/{id}."`
	DryRun    bool               `json:"dry_run"`
	Next      int64              `json:"next,omitempty" doc:"There are more messages: repeat the request with this value as after."`
}

type outcomeOutput struct {
	Location string `header:"Location" doc:"Where to ask for the outcome of a requeue."`
	Body     outcome

	consumers map[string]int
}

// textOutput is plain text, which a browser must not render as a page.
type textOutput struct {
	ContentType string `header:"Content-Type"`
	Disposition string `header:"Content-Disposition"`
	Body        []byte
}

func text(name string, body []byte) *textOutput {
	return &textOutput{ContentType: "text/plain", Disposition: fmt.Sprintf(`attachment; filename="%s"`, name), Body: body}
}

// maxBody fits the largest payload with every character escaped.
const maxBody = 6*event.MaxPayload + 1<<16

func (e engine) registerFailed(a *API) {
	returnsText := func(o *huma.Operation) {
		o.Responses = map[string]*huma.Response{"200": {
			Description: "Plain text.",
			Content:     map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
		}}
	}
	inParts := func(o *huma.Operation) {
		o.Description = "Examines at most `limit` messages per request. If the response has `next`, there are more."
	}

	Get(a, access.Viewer, "/failed", "List failed messages, newest first", e.listFailed)
	Get(a, access.Viewer, "/failed/groups", "List failed messages grouped by cause, largest group first", e.listGroups)
	Post(a, access.Operator, "/failed/groups/{group}/note", "Note something about a group of failed messages; an empty note removes it", e.note)
	Get(a, access.Viewer, "/failed/counts", "Count failed messages by a property", e.countFailed)
	Get(a, access.Viewer, "/failed/{id}", "Show a failed message", e.getEntry, func(o *huma.Operation) {
		o.Responses = map[string]*huma.Response{"304": {Description: "Not Modified"}}
	})
	register(a, access.Operator, http.MethodPatch, "/failed/{id}", "Edit the payload of a stopped message; the original is kept", e.editEntry,
		[]func(*huma.Operation){func(o *huma.Operation) { o.MaxBodyBytes = maxBody }})
	Get(a, access.Viewer, "/failed/{id}/actions", "List the actions on a failed message, oldest first", e.listActions)
	Get(a, access.Operator, "/failed/{id}/payload", "Download the payload of a failed message, byte for byte", e.download, returnsText)
	Get(a, access.Operator, "/failed/{id}/diff", "Show the changes to the payload as a unified diff", e.diff, returnsText)
	Post(a, access.Operator, "/failed/{id}/requeue", "Retry a stopped message in the consumer that it failed in", e.requeueEntry)
	Post(a, access.Operator, "/failed/{id}/discard", "Resolve a stopped message without applying it", e.discardEntry)
	Post(a, access.Operator, "/failed/requeue", "Retry many stopped messages in order of arrival", e.requeueMany, inParts)
	Post(a, access.Operator, "/failed/edit", "Apply a JSON Merge Patch (RFC 7396) or a jq expression to the payloads of many stopped messages", e.editMany, inParts)
	Post(a, access.Operator, "/failed/discard", "Resolve many stopped messages without applying them", e.discardMany, inParts)
}

// selectInput is the query of a list of failed messages.
type selectInput struct {
	Paging
	operate.Selection

	State string `query:"state" enum:"waiting,stopped,resolved,all" default:"stopped"`
}

// filter returns the filter of a list. What viewers must not see, they cannot search.
func (e engine) filter(ctx context.Context, s operate.Selection, state string) (failed.Filter, error) {
	f, err := e.Filter(ctx, s, state)
	f.Masked = Masked(ctx)

	return f, err
}

func (e engine) listFailed(ctx context.Context, in *selectInput) (*List[entry], error) {
	f, err := e.filter(ctx, in.Selection, in.State)
	if err == nil {
		err = in.After("%d", &f.Before)
	}

	if err != nil {
		return nil, err
	}

	list, err := e.Failed.Summaries(ctx, f, in.Limit+1)
	entries := postgres.Column(list, func(found failed.Entry) entry { return summary(e.masked(ctx, found)) })

	return Page(&in.Paging, entries, func(e entry) string { return fmt.Sprint(e.ID) }), err
}

func (e engine) listGroups(ctx context.Context, in *selectInput) (*List[failed.Group], error) {
	var after failed.GroupsAfter

	f, err := e.filter(ctx, in.Selection, in.State)
	if err == nil {
		err = in.After("%d %s", &after.Entries, &after.ID)
	}

	if err != nil {
		return nil, err
	}

	groups, err := e.Failed.Groups(ctx, f, after, in.Limit+1)

	for i := range groups {
		if Masked(ctx) {
			groups[i] = e.MaskGroup(groups[i])
		}
	}

	return Page(&in.Paging, groups, func(g failed.Group) string { return fmt.Sprintf("%d %s", g.Entries, g.ID) }), err
}

func (e engine) note(ctx context.Context, in *struct {
	Caller

	Group string `path:"group" maxLength:"64"`
	Body  struct {
		Note string `json:"note" maxLength:"2000" doc:"Viewers do not see it."`
	}
},
) (*struct{}, error) {
	return nil, e.Note(ctx, in.Group, in.actor(in.Body.Note))
}

func (e engine) countFailed(ctx context.Context, in *struct {
	operate.Selection

	State string `query:"state" enum:"waiting,stopped,resolved,all" default:"stopped"`
	By    string `query:"by" required:"true" enum:"topic,consumer,reason,key,release"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
},
) (*List[failed.Count], error) {
	f, err := e.filter(ctx, in.Selection, in.State)
	if err != nil {
		return nil, err
	}

	counts, err := e.Failed.CountBy(ctx, f, in.By, in.Limit+1)

	return First(counts, err, in.Limit, func() (int, error) { return e.Failed.CountValues(ctx, f, in.By) })
}

func (e engine) getEntry(ctx context.Context, in *struct {
	EntryInput
	Conditions
},
) (*entryOutput, error) {
	_, out, err := e.entry(ctx, in.ID, &in.Conditions)

	return out, err
}

// entry responds with a failed message.
func (e engine) entry(ctx context.Context, id int64, conditions *Conditions) (found failed.Exported, out *entryOutput, err error) {
	found, err = e.Exported(ctx, id)
	if err == nil {
		err = conditions.check(found)
	}

	shown := found
	shown.Entry = e.masked(ctx, found.Entry)

	return found, &entryOutput{ETag: quoted(found), Body: exported(shown)}, err
}

// changed makes a change and responds like entry. It checks the conditions before the
// change. Nothing after the change may hide that it succeeded: the message may be gone.
func (e engine) changed(ctx context.Context, id int64, conditions *Conditions, change func(failed.Entry) error) (*entryOutput, error) {
	before, out, err := e.entry(ctx, id, conditions)
	if err == nil {
		err = change(before.Entry)
	}

	if err != nil {
		return nil, err
	}

	_, after, err := e.entry(ctx, id, &Conditions{})
	if err != nil {
		after, out.ETag, out.Body.Unknown = out, "", scrub.Text(err.Error())
	}

	return after, nil
}

func (e engine) editEntry(ctx context.Context, in *struct {
	ChangeInput

	Body struct {
		WhyBody

		NewKey  string  `json:"new_key,omitempty" maxLength:"2000" example:"order_123" doc:"The key of the new payload: required if the edit changes the key."`
		Payload content `json:"payload" example:"{\"text\":\"{\\\"order\\\":{\\\"id\\\":\\\"order_123\\\",\\\"product_id\\\":\\\"product_1\\\",\\\"quantity\\\":2,\\\"total_amount\\\":99.99}}\"}"`
	}
},
) (*entryOutput, error) {
	payload, err := in.Body.Payload.bytes()
	if err != nil {
		return nil, err
	}

	return e.changed(ctx, in.ID, &in.Conditions, func(found failed.Entry) error {
		edit := failed.Edit{Revision: found.Revision, Payload: payload, NewKey: in.Body.NewKey}

		_, err := e.Failed.Edit(ctx, in.ID, edit, in.actor(in.Body.Why), e.Router.Check)

		return err
	})
}

func (e engine) listActions(ctx context.Context, in *EntryInput) (*List[action], error) {
	exported, err := e.Exported(ctx, in.ID)

	return All(postgres.Column(exported.Actions, func(a activity.Action) action { return maskedAction(ctx, a) }), err)
}

func (e engine) download(ctx context.Context, in *struct {
	EntryInput

	Which string `query:"which" enum:"original,edited" default:"original" doc:"If there is no edit, edited returns the original."`
},
) (*textOutput, error) {
	found, err := e.Failed.Get(ctx, in.ID)

	payload := found.Payload
	if in.Which == "edited" {
		payload = found.Current()
	}

	return text(fmt.Sprintf("failed-%d-%s.txt", in.ID, in.Which), payload), err
}

func (e engine) diff(ctx context.Context, in *EntryInput) (*textOutput, error) {
	found, err := e.Failed.Get(ctx, in.ID)

	return text(fmt.Sprintf("failed-%d.diff", in.ID), []byte(failed.Diff(found))), err
}

func (e engine) requeueEntry(ctx context.Context, in *struct {
	ChangeInput

	Body struct {
		WhyBody

		Words
	}
},
) (*entryOutput, error) {
	by := in.actor(in.Body.Why)

	out, err := e.changed(ctx, in.ID, &in.Conditions, func(found failed.Entry) error {
		return e.ActOnOne(found, func(f failed.Filter) (failed.Outcome, error) {
			return e.Failed.Requeue(ctx, f, by, in.Body.pace(failed.Pace{}), e.Router.Check)
		})
	})
	if err == nil {
		out.Location = outcomeAt(by)
	}

	return out, err
}

func (e engine) discardEntry(ctx context.Context, in *struct {
	ChangeInput

	Body ReasonBody
},
) (*entryOutput, error) {
	return e.changed(ctx, in.ID, &in.Conditions, func(found failed.Entry) error {
		return e.ActOnOne(found, func(f failed.Filter) (failed.Outcome, error) {
			return e.Failed.Discard(ctx, f, in.actor(in.Body.Why), failed.Pace{})
		})
	})
}

func (e engine) requeueMany(ctx context.Context, in *struct {
	Caller

	Body struct {
		operate.Selection
		Paced
		WhyBody
		Words
	}
},
) (*outcomeOutput, error) {
	by := in.actor(in.Body.Why)

	out, err := e.actOnMany(ctx, in.Body.Selection, in.Body.Paced, func(ctx context.Context, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
		return e.Failed.Requeue(ctx, f, by, in.Body.pace(pace), e.Router.Check)
	})
	if err == nil && !in.Body.DryRun {
		out.Location, out.Body.Request = outcomeAt(by), by.Request
		out.Body.Held, out.Body.Unknown = e.HeldAfter(ctx, "", out.consumers)
	}

	return out, err
}

func (e engine) editMany(ctx context.Context, in *struct {
	Caller

	Body struct {
		operate.Selection
		Paced
		WhyBody

		Patch json.RawMessage `json:"patch,omitempty" doc:"A merge patch: the members to set; null removes one. Either patch or jq is required."`
		JQ    string          `json:"jq,omitempty" maxLength:"10000" doc:"A jq expression that yields the new payload for the present one. It has 250 ms per message, and no access to the environment, files or modules." example:".order.quantity |= tonumber"`
	}
},
) (*outcomeOutput, error) {
	if (in.Body.Patch == nil) == (in.Body.JQ == "") {
		return nil, event.Errorf(event.Invalid, "body: expected either patch or jq")
	}

	return e.actOnMany(ctx, in.Body.Selection, in.Body.Paced, func(ctx context.Context, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
		if in.Body.JQ != "" {
			return e.Failed.Transform(ctx, f, in.Body.JQ, in.actor(in.Body.Why), pace, e.Router.Check)
		}

		return e.Failed.Patch(ctx, f, in.Body.Patch, in.actor(in.Body.Why), pace, e.Router.Check)
	})
}

func (e engine) discardMany(ctx context.Context, in *struct {
	Caller

	Body struct {
		operate.Selection
		Paced
		ReasonBody
	}
},
) (*outcomeOutput, error) {
	return e.actOnMany(ctx, in.Body.Selection, in.Body.Paced, func(ctx context.Context, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
		return e.Failed.Discard(ctx, f, in.actor(in.Body.Why), pace)
	})
}

// manyTimeout bounds an action on many messages; the response then says where to
// continue. It is well below the server's timeout.
const manyTimeout = 15 * time.Second

func (e engine) actOnMany(ctx context.Context, selection operate.Selection, paced Paced,
	act func(context.Context, failed.Filter, failed.Pace) (failed.Outcome, error),
) (*outcomeOutput, error) {
	f, err := e.ToActOn(ctx, selection, paced.IDs, paced.All)
	if err != nil {
		return nil, err
	}

	f.After = paced.After

	bounded, cancel := context.WithTimeout(ctx, manyTimeout)
	defer cancel()

	o, err := act(bounded, f, failed.Pace{Limit: paced.Limit, DryRun: paced.DryRun})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && o.Last > 0 {
		err = nil // the caller continues after the last message
	}

	out := &outcomeOutput{consumers: o.Consumers, Body: outcome{
		Selected: o.Selected, Done: o.Done, Refused: o.Refused, RefusedBy: o.RefusedBy, Refusals: o.Refusals, Changed: o.Changed,
		Unchanged: o.Unchanged, Diffs: o.Diffs, Held: []operate.Held{}, DryRun: o.DryRun,
	}}
	if o.Done+o.Refused+o.Changed+o.Unchanged < o.Selected {
		out.Body.Next = o.Last
	}

	return out, err
}
