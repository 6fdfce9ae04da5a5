package httpapi

import (
	"context"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/consumer"
)

type erasureOutput struct{ Body consumer.Erasure }

func (e engine) registerErasures(a *API) {
	Post(a, access.Admin, "/erasures", "Erase the personal data of a person; this cannot be undone", e.erase)
}

func (e engine) erase(ctx context.Context, in *struct {
	Caller

	Body struct {
		WhyBody

		ID      string   `json:"id" minLength:"1" maxLength:"500" doc:"The id of the person." example:"alice"`
		DryRun  bool     `json:"dry_run,omitempty" doc:"Only report what the erasure would do. If false, why is required."`
		Search  []string `json:"search,omitempty" maxItems:"20" nullable:"false" doc:"Additional texts to search for in all tables of the schema, such as a former address."`
		Failed  []int64  `json:"failed,omitempty" maxItems:"1000" nullable:"false" doc:"Failed messages to erase as well, because they are about the person."`
		Actions []int64  `json:"activity,omitempty" maxItems:"1000" nullable:"false" doc:"Operator actions whose text is to be erased as well."`
	}
},
) (*erasureOutput, error) {
	done, err := e.Router.Erase(ctx, consumer.Erasing{
		Subject: in.Body.ID, Search: in.Body.Search, Failed: in.Body.Failed, Actions: in.Body.Actions,
		DryRun: in.Body.DryRun, By: in.actor(in.Body.Why),
	})

	return &erasureOutput{Body: done}, err
}
