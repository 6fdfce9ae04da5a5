package httpapi

import (
	"context"
	"time"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

type pauseInput struct {
	Caller

	Consumer string `path:"consumer" maxLength:"250" example:"fulfilment.charge"`
	Body     struct {
		WhyBody

		For    string `json:"for,omitempty" maxLength:"50" example:"1h" doc:"How long the pause lasts, such as 30m. Without it, the pause lasts until the consumer is resumed."`
		DryRun bool   `json:"dry_run,omitempty" doc:"Only report what the pause would affect."`
	}
}

type pauseOutput struct{ Body operate.PauseOutcome }

type resumeInput struct {
	Caller

	Consumer string `path:"consumer" maxLength:"250" example:"fulfilment.charge"`
	Body     WhyBody
}

type resumeOutput struct {
	Body struct {
		Changed bool `json:"changed" doc:"False if the consumer was not paused."`
	}
}

func (e engine) registerConsumers(a *API) {
	Get(a, access.Viewer, "/consumers", "List the consumers and their state", func(ctx context.Context, _ *struct{}) (*List[operate.Consumer], error) {
		list, err := e.Consumers(ctx)

		return All(postgres.Column(list, func(c operate.Consumer) operate.Consumer { return maskedConsumer(ctx, c) }), err)
	})
	Post(a, access.Operator, "/consumers/{consumer}/pause", "Pause a consumer on all replicas, and report what will wait during the pause", e.pause)
	Post(a, access.Operator, "/consumers/{consumer}/resume", "Resume a paused consumer on all replicas", e.resume)
}

func (e engine) pause(ctx context.Context, in *pauseInput) (out *pauseOutput, err error) {
	pausing := operate.Pausing{DryRun: in.Body.DryRun}

	if in.Body.For != "" {
		if pausing.For, err = time.ParseDuration(in.Body.For); err != nil || pausing.For == 0 {
			return nil, event.Errorf(event.Invalid, "for: is %q, expected a duration such as 30m or 1h", in.Body.For)
		}
	}

	out = &pauseOutput{}
	out.Body, err = e.Pause(ctx, in.Consumer, pausing, in.actor(in.Body.Why))

	return out, err
}

func (e engine) resume(ctx context.Context, in *resumeInput) (out *resumeOutput, err error) {
	out = &resumeOutput{}
	out.Body.Changed, err = e.Router.Resume(ctx, in.Consumer, in.actor(in.Body.Why))

	return out, err
}
