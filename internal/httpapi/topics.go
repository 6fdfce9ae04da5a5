package httpapi

import (
	"context"
	"time"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/operate"
)

type passedOutput struct{ Body operate.Passed }

func (e engine) registerTopics(a *API) {
	Get(a, access.Operator, "/topics/{topic}/messages", "Wait for the next messages on a topic of the embedded broker",
		func(ctx context.Context, in *struct {
			Topic string `path:"topic" maxLength:"250" example:"orders.created"`
			After int64  `query:"after" default:"-1" minimum:"-1" doc:"Only messages after this position; -1 means from now on."`
			Wait  int    `query:"wait" default:"0" minimum:"0" maximum:"10" doc:"Wait this many seconds for a message."`
		},
		) (*passedOutput, error) {
			if err := e.KnownTopic(in.Topic); err != nil {
				return nil, err
			}

			return &passedOutput{Body: e.Tap.After(ctx, in.Topic, in.After, time.Duration(in.Wait)*time.Second)}, nil
		})
}
