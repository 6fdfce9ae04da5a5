package httpapi

import (
	"context"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
)

type refusedOutput struct {
	Body struct {
		Done []outbox.Refused `json:"done" nullable:"false" doc:"The messages that were found and changed."`
	}
}

func (e engine) registerRefused(a *API) {
	Get(a, access.Viewer, "/refused", "List outgoing messages that the broker refuses, oldest first", func(ctx context.Context, in *struct {
		Topic string `query:"topic" maxLength:"250"`
		Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	},
	) (*List[outbox.Refused], error) {
		list, err := outbox.ListRefused(ctx, e.Pool, in.Topic, in.Limit+1)

		return First(list, err, in.Limit, func() (int, error) {
			return outbox.CountRefused(ctx, e.Pool, in.Topic)
		})
	})
	Post(a, access.Operator, "/refused/retry", "Publish refused messages again", e.actOnRefused(outbox.RetryRefused))
	Post(a, access.Operator, "/refused/discard", "Delete refused messages without publishing them; requires why", e.actOnRefused(outbox.DiscardRefused))
}

type refusedInput struct {
	Caller

	Body struct {
		WhyBody

		IDs []int64 `json:"ids" minItems:"1" maxItems:"1000" nullable:"false" doc:"The messages."`
	}
}

func (e engine) actOnRefused(act outbox.ActOnRefused) func(context.Context, *refusedInput) (*refusedOutput, error) {
	return func(ctx context.Context, in *refusedInput) (out *refusedOutput, err error) {
		out = &refusedOutput{}
		out.Body.Done, err = act(ctx, e.Pool, in.Body.IDs, in.actor(in.Body.Why))

		if err == nil && len(out.Body.Done) == 0 {
			err = event.Missing("refused message", "with one of these ids")
		}

		return out, err
	}
}
