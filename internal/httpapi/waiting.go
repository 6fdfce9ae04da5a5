package httpapi

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
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
	Location string `header:"Location" doc:"Where to ask for the outcome."`
	Body     struct {
		failed.Retried

		Held    []operate.Held `json:"held" nullable:"false" doc:"What is holding up keys that are due: messages counts keys."`
		Unknown string         `json:"unknown,omitempty" doc:"Why it is unknown what is holding them up. The action succeeded."`
		Request uuid.UUID      `json:"request" doc:"Ask for the outcome at /requests/{id}."`
	}
}

// RequestInput identifies an action that retried messages.
type RequestInput struct {
	ID   string `path:"id" format:"uuid"`
	Wait int    `query:"wait" minimum:"0" maximum:"20" doc:"Wait up to this many seconds until each message has been tried."`
}

type progressOutput struct {
	Body struct {
		failed.Progress

		Held []operate.Held `json:"held" nullable:"false" doc:"What is holding up the untried messages."`
	}
}

func (e engine) registerWaiting(a *API) {
	Get(a, access.Viewer, "/waiting", "List the waiting keys with their first message, next due first", func(ctx context.Context, in *struct {
		KeyFilter

		Limit int `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	},
	) (*List[waitingKey], error) {
		f := failed.KeyFilter{Consumer: in.Consumer, Key: in.Key}
		list, err := e.WaitingKeys(ctx, f, in.Limit+1)
		keys := postgres.Column(list, func(w failed.WaitingEntry) waitingKey {
			w.Entry = e.masked(ctx, w.Entry)

			return waitingKey{WaitingEntry: w}
		})

		return First(keys, err, in.Limit, func() (int, error) { return e.Failed.CountKeys(ctx, f) })
	})
	Get(a, access.Viewer, "/waiting/{id}", "Show the messages waiting for the same key, in order", func(ctx context.Context, in *EntryInput) (*List[entry], error) {
		list, err := e.Failed.Queue(ctx, in.ID)

		return All(postgres.Column(list, func(found failed.Entry) entry { return detail(e.masked(ctx, found)) }), err)
	})
	Post(a, access.Operator, "/waiting/retry", "Retry waiting keys now", e.retry)
	Get(a, access.Viewer, "/requests/{id}", "Show what became of the messages that a request requeued or retried", e.progress)
	Post(a, access.Operator, "/waiting/{id}/skip", "Stop the first message of a waiting key, so that the next one is retried", func(ctx context.Context, in *struct {
		EntryInput
		Caller

		Body WhyBody
	},
	) (*entryOutput, error) {
		return e.changed(ctx, in.ID, &Conditions{}, func(failed.Entry) error {
			_, err := e.Failed.Skip(ctx, in.ID, in.actor(in.Body.Why))

			return err
		})
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
	by := in.actor(in.Body.Why)
	out = &retryOutput{}
	out.Body.Request = by.Request

	out.Body.Retried, err = e.Retry(ctx, f, in.Body.All, by)
	if err == nil {
		out.Location = outcomeAt(by)
		out.Body.Held, out.Body.Unknown = e.HeldAfter(ctx, "", out.Body.Consumers)
	}

	return out, err
}

func (e engine) progress(ctx context.Context, in *RequestInput) (out *progressOutput, err error) {
	id, err := uuid.Parse(in.ID)
	if err != nil {
		return nil, event.Errorf(event.Invalid, "id: is %q, expected a UUID", in.ID)
	}

	waiting, cancel := context.WithTimeout(ctx, time.Duration(in.Wait)*time.Second)
	defer cancel()

	out = &progressOutput{}
	if out.Body.Progress, err = e.Follow(waiting, id, nil); err != nil {
		return nil, err
	}

	if out.Body.Messages == 0 {
		return nil, event.Missing("request that retried messages", in.ID)
	}

	out.Body.Held, err = e.Held(ctx, "", out.Body.Consumers)

	return out, err
}
