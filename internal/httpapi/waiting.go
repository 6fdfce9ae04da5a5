package httpapi

import (
	"context"

	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// waitingKey is the first message of a waiting key.
type waitingKey struct {
	failed.WaitingEntry

	Headers *headers `json:"headers,omitempty"`
	Payload *content `json:"payload,omitempty"`
	Edited  *content `json:"edited,omitempty"`
}

// KeyFilter selects waiting keys.
type KeyFilter struct {
	Consumer string `query:"consumer" json:"consumer,omitempty" maxLength:"250"`
	Key      string `query:"key" json:"key,omitempty" maxLength:"2000"`
}

type retryOutput struct {
	Body struct {
		Due int64 `json:"due" doc:"The number of keys made due."`
	}
}

func (e engine) registerWaiting(a *API) {
	Get(a, "/waiting", "List the waiting keys with their first message, next due first", func(ctx context.Context, in *struct {
		KeyFilter

		Limit int `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	},
	) (*List[waitingKey], error) {
		f := failed.KeyFilter{Consumer: in.Consumer, Key: in.Key}
		list, err := e.WaitingKeys(ctx, f, in.Limit+1)
		keys := postgres.Column(list, func(w failed.WaitingEntry) waitingKey { return waitingKey{WaitingEntry: w} })

		return First(keys, err, in.Limit, func() (int, error) { return e.Failed.CountKeys(ctx, f) })
	})
	Get(a, "/waiting/{id}", "Show the messages waiting for the same key, in order", func(ctx context.Context, in *EntryInput) (*List[entry], error) {
		list, err := e.Failed.Queue(ctx, in.ID)

		return All(postgres.Column(list, detail), err)
	})
	Post(a, "/waiting/retry", "Retry waiting keys now", e.retry)
	Post(a, "/waiting/{id}/skip", "Stop the first message of a waiting key, so that the next one is retried", func(ctx context.Context, in *struct {
		EntryInput
		Caller

		Body WhyBody
	},
	) (*entryOutput, error) {
		if err := e.Failed.Skip(ctx, in.ID, in.actor(in.Body.Why)); err != nil {
			return nil, err
		}

		return e.entry(ctx, in.ID, &Conditions{}, nil)
	})
}

func (e engine) retry(ctx context.Context, in *struct {
	Caller

	Body struct {
		KeyFilter
		WhyBody

		ID  int64 `json:"id,omitempty" minimum:"1" doc:"The key of this message."`
		All bool  `json:"all,omitempty" doc:"All keys: required if nothing else is selected."`
	}
},
) (out *retryOutput, err error) {
	f := failed.KeyFilter{ID: in.Body.ID, Consumer: in.Body.Consumer, Key: in.Body.Key}
	out = &retryOutput{}
	out.Body.Due, err = e.Retry(ctx, f, in.Body.All, in.actor(in.Body.Why))

	return out, err
}
