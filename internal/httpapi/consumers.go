package httpapi

import (
	"context"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/operate"
)

type switchInput struct {
	Caller

	Consumer string `path:"consumer" maxLength:"250" example:"fulfilment.charge"`
	Body     WhyBody
}

type switchOutput struct {
	Body struct {
		Changed bool `json:"changed" doc:"False if the consumer was already in this state."`
	}
}

func (e engine) registerConsumers(a *API) {
	Get(a, "/consumers", "List the consumers and their state", func(ctx context.Context, _ *struct{}) (*List[operate.Consumer], error) {
		return All(e.Consumers(ctx))
	})
	Post(a, "/consumers/{consumer}/pause", "Pause a consumer on all replicas", switchConsumer(e.Router.Pause))
	Post(a, "/consumers/{consumer}/resume", "Resume a paused consumer on all replicas", switchConsumer(e.Router.Resume))
}

func switchConsumer(change func(context.Context, string, activity.Actor) (bool, error)) func(context.Context, *switchInput) (*switchOutput, error) {
	return func(ctx context.Context, in *switchInput) (out *switchOutput, err error) {
		out = &switchOutput{}
		out.Body.Changed, err = change(ctx, in.Consumer, in.actor(in.Body.Why))

		return out, err
	}
}
