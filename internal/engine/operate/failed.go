package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Selection selects failed messages. It represents a command's flags, a list's query or a
// request's body.
type Selection struct {
	Group     string     `query:"group" json:"group,omitempty" maxLength:"64"`
	Topic     string     `query:"topic" json:"topic,omitempty" maxLength:"250"`
	Consumer  string     `query:"consumer" json:"consumer,omitempty" maxLength:"250"`
	Reason    string     `query:"reason" json:"reason,omitempty" enum:"too_large,malformed,invalid,refused,conflict,forgotten,handler_error,panic,pending,early"`
	Key       string     `query:"key" json:"key,omitempty" maxLength:"2000"`
	MessageID string     `query:"message_id" json:"message_id,omitempty" format:"uuid"`
	Text      string     `query:"text" json:"text,omitempty" maxLength:"500" doc:"Only messages whose key, error or payload contains this; for viewers, whose key or cause does. Case matters in payloads only."`
	Since     event.Time `query:"since" json:"since,omitzero" example:"2026-01-31T12:00:00Z" doc:"Only messages that failed at this time or later."`
	Until     event.Time `query:"until" json:"until,omitzero" example:"2026-02-01T12:00:00Z" doc:"Only messages that failed before this time."`
}

// anyState selects messages in all states.
const anyState = "all"

// States lists the states that a Selection may have.
var States = []string{string(failed.Waiting), string(failed.Stopped), string(failed.Resolved), anyState}

// Filter returns the filter for a selection of messages in the given state: waiting,
// stopped, resolved or all. It returns an Unknown error if the selection names a group,
// topic or consumer that neither exists nor has failed messages.
func (o *Operator) Filter(ctx context.Context, s Selection, state string) (failed.Filter, error) {
	f, err := s.filter(state)
	if err == nil {
		err = o.known(ctx, f)
	}

	return f, err
}

// ToActOn is Filter for the stopped messages to act on. It refuses to select everything
// by accident.
func (o *Operator) ToActOn(ctx context.Context, s Selection, ids []int64, all bool) (failed.Filter, error) {
	f, err := s.toActOn(ids, all)
	if err == nil {
		err = o.known(ctx, f)
	}

	return f, err
}

func (s Selection) toActOn(ids []int64, all bool) (failed.Filter, error) {
	f, err := s.filter(string(failed.Stopped))
	f.IDs = ids

	if err == nil {
		err = selected(f.Selective(), all)
	}

	return f, err
}

func (s Selection) filter(state string) (failed.Filter, error) {
	f := failed.Filter{
		Group: s.Group, Topic: s.Topic, Consumer: s.Consumer, Reason: event.Reason(s.Reason), Key: s.Key, Text: s.Text, Since: s.Since.Time, Until: s.Until.Time,
	}

	err := errors.Join(event.KnownName("state", state, States), event.KnownName("reason", f.Reason, event.Reasons))
	if err != nil {
		return f, err
	}

	if state != anyState {
		f.State = failed.State(state)
	}

	if s.MessageID == "" {
		return f, nil
	}

	id, err := uuid.Parse(s.MessageID)
	if err != nil {
		return f, event.Errorf(event.Invalid, "message id: is %q, expected a UUID", s.MessageID)
	}

	f.MessageID = id

	return f, nil
}

func selected(some, all bool) error {
	switch {
	case !some && !all:
		return event.Errorf(event.Invalid, "nothing is selected: specify ids or a filter, or select all")
	case some && all:
		return event.Errorf(event.Invalid, "all cannot be combined with ids or a filter")
	default:
		return nil
	}
}

// known returns an Unknown error if f names a group, topic or consumer that neither
// exists nor has failed messages.
func (o *Operator) known(ctx context.Context, f failed.Filter) error {
	for _, c := range []struct {
		what, name string
		known      []string
		filter     failed.Filter
	}{
		{"group", f.Group, nil, failed.Filter{Group: f.Group}},
		{"topic", f.Topic, o.Topics(), failed.Filter{Topic: f.Topic}},
		{"consumer", f.Consumer, o.ConsumerNames(), failed.Filter{Consumer: f.Consumer}},
	} {
		if c.name == "" || slices.Contains(c.known, c.name) {
			continue
		}

		found, err := o.Failed.Summaries(ctx, c.filter, 1)
		if err == nil && len(found) == 0 {
			if c.what == "group" {
				c.known, err = o.nearGroups(ctx, c.name)
			}

			err = errors.Join(err, event.UnknownName(c.what, c.name, c.known))
		}

		if err != nil {
			return err
		}
	}

	return nil
}

// nearGroups returns those of the largest groups whose names resemble name.
func (o *Operator) nearGroups(ctx context.Context, name string) ([]string, error) {
	const enough = 1000

	groups, err := o.Failed.Groups(ctx, failed.Filter{}, failed.GroupsAfter{}, enough)

	return event.Nearest(name, postgres.Column(groups, func(g failed.Group) string { return g.ID })), err
}

// WaitingKeys returns the selected waiting keys with their first messages, next due
// first.
func (o *Operator) WaitingKeys(ctx context.Context, f failed.KeyFilter, limit int) ([]failed.WaitingEntry, error) {
	if err := o.known(ctx, failed.Filter{Consumer: f.Consumer}); err != nil {
		return nil, err
	}

	return o.Failed.WaitingKeys(ctx, f, limit)
}

// Note notes the reason of an action on a group of failed messages, which must exist.
func (o *Operator) Note(ctx context.Context, group string, by activity.Actor) error {
	if group == "" {
		return event.Missing("group", group)
	}

	if err := o.known(ctx, failed.Filter{Group: group}); err != nil {
		return err
	}

	return o.Failed.Note(ctx, group, by)
}

// Actable returns an error unless all given messages exist and are stopped.
func (o *Operator) Actable(ctx context.Context, ids []int64) error {
	for _, id := range ids {
		e, err := o.Failed.Get(ctx, id)
		if err == nil {
			err = e.Actable()
		}

		if err != nil {
			return err
		}
	}

	return nil
}

// Exported returns a failed message with the actions on it.
func (o *Operator) Exported(ctx context.Context, id int64) (out failed.Exported, err error) {
	f := failed.Filter{IDs: []int64{id}}

	err = o.Failed.Export(ctx, f, o.Router.Check, func(e failed.Exported) error {
		out = e

		return nil
	})
	if err == nil && out.ID == 0 {
		err = event.Missing("failed message", fmt.Sprint(id))
	}

	return out, err
}

// ActOnOne runs an action on one stopped message, unless it has changed since e was
// read.
func (o *Operator) ActOnOne(e failed.Entry, act func(failed.Filter) (failed.Outcome, error)) error {
	if err := e.Actable(); err != nil {
		return err
	}

	outcome, err := act(failed.Filter{IDs: []int64{e.ID}, Revision: e.Revision})

	switch {
	case err != nil:
		return err
	case outcome.Refused > 0:
		return refused(outcome.Refusals[0])
	case outcome.Done == 0:
		return failed.ChangedError(e.ID)
	}

	return nil
}

// refused returns the error for a refused action on one message.
func refused(r failed.Refusal) error {
	refusal := event.Errorf(event.Conflict, "message %d was refused: %s", r.ID, r.Error)

	if r.Overtaken != nil {
		refusal.Kind, refusal.Detail = event.Overtaken, *r.Overtaken
	}

	return refusal
}

// Retry makes the selected waiting keys due now.
func (o *Operator) Retry(ctx context.Context, f failed.KeyFilter, all bool, by activity.Actor) (out failed.Retried, err error) {
	if err := errors.Join(selected(f != (failed.KeyFilter{}), all), o.known(ctx, failed.Filter{Consumer: f.Consumer})); err != nil {
		return out, err
	}

	if f.ID != 0 {
		if _, err := o.Failed.Queue(ctx, f.ID); err != nil {
			return out, err
		}
	}

	return o.Failed.RetryNow(ctx, f, by)
}

// readProgressEvery limits how often Follow reads the progress of a request.
const readProgressEvery = 250 * time.Millisecond

// Follow reads the progress of a request until each of its messages has been tried or ctx
// ends, which is not an error. It calls fn with each reading, unless fn is nil.
func (o *Operator) Follow(ctx context.Context, request uuid.UUID, fn func(failed.Progress)) (p failed.Progress, err error) {
	for {
		started := time.Now()

		// The last reading must not fail because ctx has ended.
		if p, err = o.Failed.Progress(context.WithoutCancel(ctx), request); err != nil {
			return p, err
		}

		if fn != nil {
			fn(p)
		}

		if p.Untried == 0 || ctx.Err() != nil {
			return p, nil //nolint:nilerr // p tells the caller that messages are untried
		}

		// Reading the progress of many messages itself takes time.
		_ = backoff.Sleep(ctx, max(readProgressEvery, 4*time.Since(started)))
	}
}
