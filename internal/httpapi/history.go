package httpapi

import (
	"context"
	"fmt"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/trace"
)

// action is an operator action.
type action struct {
	activity.Action

	Payload *content `json:"payload,omitempty" doc:"The payload after an edit."`
}

func actionOf(a activity.Action) action { return action{Action: a, Payload: contentOf(a.Payload)} }

// ActivityFilter is the query of the activity list.
type ActivityFilter struct {
	Action  string     `query:"action" enum:"paused,resumed,edited,requeued,reopened,discarded,retried,skipped,repaired,erased"`
	Subject string     `query:"subject" maxLength:"2500" doc:"Only actions on this consumer, user or key."`
	Who     string     `query:"who" maxLength:"100" doc:"Only actions by this operator."`
	Since   event.Time `query:"since" example:"2026-01-31T12:00:00Z" doc:"Only actions at this time or later."`
	Until   event.Time `query:"until" example:"2026-02-01T12:00:00Z" doc:"Only actions before this time."`
}

// registerHistory adds the operations on past messages, events and actions.
func (e engine) registerHistory(a *API) {
	Get(a, access.Viewer, "/conversations/{id}", "Show the conversations of a message, an order or a user: what caused each message and what it caused",
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"500" doc:"The id of a message, a correlation ID, or the key of messages, such as the id of an order." example:"0199a1b2-5c3d-7e4f-8a9b-0c1d2e3f4a5b"`
		},
		) (*List[*trace.Message], error) {
			roots, err := e.Trace(ctx, in.ID)
			if Masked(ctx) {
				operate.MaskTrees(roots)
			}

			return All(roots, err)
		})
	Get(a, access.Viewer, "/events", "List all events by position, or the events of a stream", e.listEvents)
	Get(a, access.Operator, "/audit", "Check the invariants of the database and of other systems' records", e.audit)
	Get(a, access.Viewer, "/activity", "List operator actions, newest first", e.listActivity)
}

func (e engine) listEvents(ctx context.Context, in *struct {
	Paging

	Stream string `query:"stream" maxLength:"500" doc:"Only events of this stream, all on one page." example:"order-order_123"`
},
) (*List[eventstore.Event], error) {
	if in.Stream != "" {
		events, err := e.Stream(ctx, in.Stream)
		maskedEvents(ctx, events)

		return All(events, err)
	}

	var after int64
	if err := in.After("%d", &after); err != nil {
		return nil, err
	}

	events, next, err := e.EventPage(ctx, after, in.Limit)
	maskedEvents(ctx, events)

	out, err := All(events, err)
	if next > after {
		out.setNext(&in.Paging, fmt.Sprint(next))
	}

	return out, err
}

type auditOutput struct{ Body invariant.Report }

func (e engine) audit(ctx context.Context, in *struct {
	Only  []string `query:"only" maxItems:"50" doc:"Run only these checks."`
	Limit int      `query:"limit" minimum:"1" maximum:"1000" default:"20" doc:"List at most this many violations per check; all are counted."`
},
) (*auditOutput, error) {
	audit, err := e.Audit(ctx, invariant.Options{Only: in.Only, Limit: in.Limit}, false, false, activity.Actor{})

	return &auditOutput{Body: audit.Report}, err
}

func (e engine) listActivity(ctx context.Context, in *struct {
	Paging
	ActivityFilter
},
) (*List[action], error) {
	f := activity.Filter{Action: activity.Kind(in.Action), Subject: in.Subject, Who: in.Who, Since: in.Since.Time, Until: in.Until.Time}
	if err := in.After("%d", &f.Before); err != nil {
		return nil, err
	}

	list, err := activity.List(ctx, e.Pool, f, in.Limit+1)

	return Page(&in.Paging, postgres.Column(list, func(a activity.Action) action { return maskedAction(ctx, a) }), func(a action) string { return fmt.Sprint(a.ID) }), err
}
