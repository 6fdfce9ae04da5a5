package operate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Consumers returns the consumers with the pauses stored in Postgres.
func (o *Operator) Consumers(ctx context.Context) ([]consumer.State, error) {
	pauses, err := consumer.Pauses(ctx, o.Pool)
	if err != nil {
		return nil, err
	}

	states := o.Router.States()

	for i, s := range states {
		for _, p := range pauses {
			if p.Consumer == s.Consumer {
				states[i].Pause = &p
			}
		}
	}

	return states, nil
}

// ConsumerNames returns the names of the consumers.
func (o *Operator) ConsumerNames() []string {
	return postgres.Column(o.Router.Routes(), func(r *consumer.Route) string { return r.Consumer })
}

// Topics returns the topics that the service consumes or publishes.
func (o *Operator) Topics() []string { return slices.Concat(o.Router.Topics()) }

// KnownTopic returns an Unknown error unless the service consumes or publishes the
// topic.
func (o *Operator) KnownTopic(topic string) error {
	if known := o.Topics(); !slices.Contains(known, topic) {
		return event.UnknownName("topic", topic, known)
	}

	return nil
}

// Paused formats who paused a consumer, since when and why.
func Paused(p consumer.Pause, stamp func(time.Time) string) string {
	return fmt.Sprintf("paused by %s since %s: %s", p.Who, stamp(p.At), p.Why)
}

// Describe formats the state of a consumer on one line: running, paused or waiting.
func Describe(s consumer.State, stamp func(time.Time) string) string {
	switch {
	case s.Pause != nil:
		return Paused(*s.Pause, stamp)
	case len(s.Waits) > 0:
		return "waiting for " + strings.Join(s.Waits, " and ")
	default:
		return "running"
	}
}
